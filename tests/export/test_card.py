"""What of a model card depends on the model: its prompts, its output head."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vlm2vec.export import export
from vlm2vec.formats.json_files import read_json, write_json
from vlm2vec.model_folder.settings import SETTINGS_FILE
from vlm2vec.training.checkpoints.writer import ENCODER_FOLDER, find_checkpoint

INSTRUCTING = {"name": "chat", "template": "System: {instruction}\n{content}", "instruction": "Answer."}


@pytest.fixture
def changed(engine_runs_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies a run's checkpoint whose model has other settings in one of its files."""

    def copy(file: str, **settings: object) -> Path:
        checkpoint = shutil.copytree(find_checkpoint(engine_runs_dir / "zero2"), tmp_path / "checkpoint")
        path = checkpoint / ENCODER_FOLDER / file
        write_json(path, read_json(path) | settings)
        return checkpoint

    return copy


def first_example(card: Path) -> ast.Module:
    return ast.parse(card.read_text().split("```python\n")[1].split("```")[0])


def arguments_of_encode(card: Path) -> list[str | None]:
    calls = [node for node in ast.walk(first_example(card)) if isinstance(node, ast.Call)]
    return next(
        [keyword.arg for keyword in call.keywords]
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "encode"
    )


def test_the_example_has_an_instruction_where_the_prompts_have_a_place_for_it(
    changed: Callable[..., Path], engine_runs_dir: Path, tmp_path: Path
) -> None:
    export(find_checkpoint(engine_runs_dir / "zero2"), tmp_path / "raw")
    export(changed(SETTINGS_FILE, prompt_format=INSTRUCTING), tmp_path / "chat")
    raw, chat = (arguments_of_encode(tmp_path / name / "README.md") for name in ("raw", "chat"))
    assert raw == ["texts", "images"]
    assert chat == ["texts", "images", "instruction"]


def test_a_tied_head_needs_no_base(changed: Callable[..., Path], tmp_path: Path) -> None:
    """The folder is a whole causal model, though no file holds a head."""
    exported, _ = export(changed("config.json", tie_word_embeddings=True), tmp_path / "out")
    assert (exported.is_tied, exported.has_lm_head) == (True, False)
    assert "with tied lm_head" in str(exported)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["Phi3VForCausalLM"]
    card = (tmp_path / "out/README.md").read_text()
    assert "the output head is the token embedding" in card
    assert "will miss it" not in card
