"""Recipes and engine files by name: found, not confused with files, refused with the list of names."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm2vec.errors import InputError
from vlm2vec.installed.settings_files import engine_file, recipe_file
from vlm2vec.training.flags.engine_file import read_engine_file

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "launch/recipes").iterdir()), ids=lambda path: path.stem)
def test_every_recipe_has_a_name(path: Path) -> None:
    assert recipe_file(Path(path.stem)) == path


@pytest.mark.parametrize("path", sorted((REPOSITORY / "ds_configs").iterdir()), ids=lambda path: path.stem)
def test_every_engine_file_is_read_by_its_name(path: Path) -> None:
    assert engine_file(Path(path.stem)) == path
    assert read_engine_file(Path(path.stem)) == read_engine_file(path)


def test_a_path_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "mini", Path("recipes/mini"), Path("mini.yaml"), Path("./mini.yaml")):
        assert recipe_file(path) == path
    monkeypatch.chdir(tmp_path)
    Path("mini").touch()
    assert recipe_file(Path("mini")) == Path("mini")


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match=r"^--config lora: no such file, .* full_2048, lora_1024, .*mini, "):
        recipe_file(Path("lora"))
    with pytest.raises(InputError, match=r"^--deepspeed zero4: no such file, .*: zero1, zero2, "):
        engine_file(Path("zero4"))
