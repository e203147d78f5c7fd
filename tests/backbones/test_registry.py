"""Finding the family of a folder, and the error if there is none."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlm2vec.backbones import registry
from vlm2vec.backbones.interface import Backbone, Family
from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VModel, Phi3VProcessor
from vlm2vec.backbones.registry import family_named, family_of_config, family_of_folder, model_types, register
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten afterwards."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))


def test_a_folder_and_its_configuration_have_one_family(golden_model_dir: Path) -> None:
    family = family_of_folder(golden_model_dir)
    assert (family.model_type, family.backbone, family.processor) == ("phi3_v", Phi3VModel, Phi3VProcessor)
    assert family_of_config(Phi3VConfig()) is family
    assert family.model_import == "from vlm2vec.backbones.phi3_v import Phi3VModel"


@pytest.mark.parametrize("written", ["llama", None, 3, ["phi3_v"], "x" * 10**5])
def test_an_unknown_family_is_one_line(golden_model_dir: Path, tmp_path: Path, written: Any) -> None:
    """File, value, what there is, and where to read on; from the first reader of a folder on."""
    folder = shutil.copytree(golden_model_dir, tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"model_type": written}))
    for read in (family_of_folder, VLM2Vec.from_pretrained):
        with pytest.raises(InputError) as refusal:
            read(folder)
        said = str(refusal.value)
        assert said.startswith(f"{folder / 'config.json'}: model_type is ")
        assert json.dumps(written)[:20] in said
        assert "\n" not in said
        assert len(said) < 500
        assert all(name in said for name in model_types())
        document = re.search(r"docs/\w+\.md", said)
        assert document is not None
        assert (REPOSITORY / document[0]).is_file()


def test_every_family_brings_all_that_is_asked_for() -> None:
    assert model_types() == tuple(sorted(model_types()))
    assert "phi3_v" in model_types()
    for name in model_types():
        family = family_named(name, "test")
        assert family.model_type == name == family.backbone.config_class.model_type
        assert not family.backbone.__abstractmethods__
        for attribute in ("tensor_names", "lora_targets", "causal_class"):
            assert getattr(family.backbone, attribute)


def test_another_package_adds_a_family(families: None) -> None:
    def load() -> Family:
        return replace(family_named("phi3_v", "test"), model_type="other")

    register("other", load)
    assert family_named("other", "test").model_type == "other"
    assert {"other", "phi3_v"} <= {*model_types()}
    with pytest.raises(ValueError, match="'other' already"):
        register("other", load)


FAMILIES_OF_A_PACKAGE = """[vlm2vec.families]
theirs = their_package:THEIRS
absent = their_package:ABSENT
misnamed = their_package:replace
"""
THEIR_PACKAGE = """from dataclasses import replace
from vlm2vec.backbones.phi3_v.family import PHI3_V
THEIRS = replace(PHI3_V, model_type="theirs")
"""


def test_an_installed_package_brings_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by its metadata; imported when one of its families is asked for."""
    (tmp_path / "their_package.py").write_text(THEIR_PACKAGE)
    metadata = tmp_path / "their_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(FAMILIES_OF_A_PACKAGE)
    assert "theirs" not in model_types()
    monkeypatch.syspath_prepend(tmp_path)
    assert {"absent", "misnamed", "phi3_v", "theirs"} <= {*model_types()}
    assert "their_package" not in sys.modules
    assert family_named("theirs", "test").model_type == "theirs"
    with pytest.raises(
        InputError, match=r"folder: .*'absent' cannot be loaded from their_package:ABSENT \(Attrib.*\)$"
    ):
        family_named("absent", "folder")
    with pytest.raises(
        InputError, match="folder: family 'misnamed': their_package:replace is a function, not a Family"
    ):
        family_named("misnamed", "folder")


def test_a_family_that_lacks_something_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Backbone(Phi3VConfig())
