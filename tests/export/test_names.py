"""A family whose modules have different names than its published tensors: loading, saving, exporting."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm2vec import VLM2Vec
from vlm2vec.backbones import registry
from vlm2vec.backbones.phi3_v import Phi3VModel
from vlm2vec.errors import InputError
from vlm2vec.export import export
from vlm2vec.model_folder.settings import SETTINGS_FILE
from vlm2vec.training.checkpoints.writer import ENCODER_FOLDER, find_checkpoint

WEIGHTS, ADAPTER, HEAD = "model.safetensors", "adapter_model.safetensors", "lm_head.weight"
ITEMS = ["a cat", "seven", "<|endoftext|>"]


class _OtherNames(Phi3VModel):
    """The same modules; files say `decoder.blocks.N...` and `visual...`."""

    prefixes: ClassVar[Mapping[str, str]] = {
        "model.layers.": "decoder.blocks.",
        "model.vision_embed_tokens.": "visual.",
    }


@pytest.fixture(scope="module")
def plain(engine_runs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports under the modules' names, before the family changes."""
    root = tmp_path_factory.mktemp("plain")
    for name in ("zero2", "zero2-lora", "zero3"):
        export(find_checkpoint(engine_runs_dir / name), root / name, merge_lora="lora" in name)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture
def base(mini_model_dir: Path, plain: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The miniature's model as that family publishes it, with an output head; the family takes the place of its own."""
    folder = shutil.copytree(mini_model_dir, tmp_path / "base")
    weights = {_OtherNames.published_name(name): each for name, each in load_file(folder / WEIGHTS).items()}
    weights[HEAD] = torch.rand(weights["model.embed_tokens.weight"].shape)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    family = replace(registry.family_named("phi3_v", "test"), backbone=_OtherNames)
    monkeypatch.setitem(registry._FAMILIES, "phi3_v", lambda: family)
    return folder


def checkpoint_of(run: Path, folder: Path) -> Path:
    """A copy of a run's checkpoint that does not say which weights its base had: they had other names."""
    checkpoint = shutil.copytree(find_checkpoint(run), folder)
    settings = checkpoint / ENCODER_FOLDER / SETTINGS_FILE
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps({name: each for name, each in content.items() if name != "base_fingerprint"}))
    return checkpoint


def test_a_model_is_loaded_and_saved_under_the_published_names(
    base: Path, mini_model_dir: Path, tmp_path: Path
) -> None:
    encoder = VLM2Vec.from_pretrained(base)
    expected = load_file(mini_model_dir / WEIGHTS)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.backbone.state_dict().items())
    encoder.save_pretrained(tmp_path / "saved")
    saved, published = load_file(tmp_path / "saved" / WEIGHTS), load_file(base / WEIGHTS)
    assert saved.keys() == published.keys() - {HEAD}
    assert all(torch.equal(tensor, published[name]) for name, tensor in saved.items())
    again = VLM2Vec.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.encode(texts=ITEMS), encoder.encode(texts=ITEMS))
    with pytest.raises(InputError, match="weights do not fit the model"):
        VLM2Vec.from_pretrained(mini_model_dir)  # its files have the modules' names


@pytest.mark.parametrize("name", ["zero2", "zero2-lora", "zero3"])
def test_a_whole_model_is_exported_under_the_published_names(
    name: str, base: Path, plain: dict[str, Path], engine_runs_dir: Path, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(engine_runs_dir / name, tmp_path / "checkpoint")
    exported, checked = export(
        checkpoint, tmp_path / "out", merge_lora="lora" in name, base_model=str(base), check=True
    )
    assert exported.has_lm_head
    assert checked is not None
    assert "names and shapes as the base's" in checked.names
    found, published = load_file(tmp_path / "out" / WEIGHTS), load_file(base / WEIGHTS)
    assert found.keys() == published.keys()
    expected = load_file(plain[name] / WEIGHTS)
    assert all(torch.equal(found[_OtherNames.published_name(each)], tensor) for each, tensor in expected.items())
    trained = "decoder.blocks.0.self_attn.qkv_proj.weight"
    assert not torch.equal(found[trained], published[trained])


def test_an_adapter_is_exported_under_the_published_names(base: Path, engine_runs_dir: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(engine_runs_dir / "zero3-lora", tmp_path / "checkpoint")
    export(checkpoint, tmp_path / "out", base_model=str(base), check=True)
    names = load_file(tmp_path / "out" / ADAPTER).keys()
    beginnings = {name.removeprefix("base_model.model.").split(".")[0] for name in names}
    assert beginnings == {"decoder", "visual"}
    encoder = VLM2Vec.from_pretrained(tmp_path / "out")
    merged = VLM2Vec.from_pretrained(tmp_path / "out")
    merged.merge_lora()
    assert float((encoder.encode(texts=ITEMS) - merged.encode(texts=ITEMS)).abs().max()) < 1e-6
    untrained = VLM2Vec.from_pretrained(base)
    assert float((encoder.encode(texts=ITEMS) - untrained.encode(texts=ITEMS)).abs().max()) > 1e-3
