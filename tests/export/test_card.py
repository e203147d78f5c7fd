"""The model card: its content for people and for the Hub, and that its examples run."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from transformers import dynamic_module_utils

from vlm2vec.backbones.phi3_v.family import PHI3_V
from vlm2vec.export import export
from vlm2vec.export.base import BaseModel
from vlm2vec.export.card import CARD, write_card
from vlm2vec.export.exported import Exported
from vlm2vec.export.scores import Mean, Scores
from vlm2vec.formats.json_files import read_json, write_json
from vlm2vec.model_folder.settings import SETTINGS_FILE
from vlm2vec.training.checkpoints.writer import ENCODER_FOLDER, RECORD, RunRecord, find_checkpoint

FENCED = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

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


@pytest.mark.parametrize("name", ["zero2", "zero2-lora"])
def test_the_examples_of_a_card_run(
    name: str,
    engine_runs_dir: Path,
    mini_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export(find_checkpoint(engine_runs_dir / name), tmp_path / "my-model")
    (tmp_path / "untrained").symlink_to(mini_model_dir)  # as the card calls the base
    Image.new("RGB", (40, 30), "red").save(tmp_path / "image.jpg")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    examples = FENCED.findall((tmp_path / "my-model" / CARD).read_text())
    assert len(examples) == (3 if "lora" in name else 2)
    for example in examples:
        exec(compile(example, CARD, "exec"), {"__name__": CARD})
    vlm2vec, sentence_transformers = re.findall(r"tensor\(\[\[(.+)\]\]\)", capsys.readouterr().out)
    assert vlm2vec == sentence_transformers


def test_the_metadata_are_those_that_the_hub_reads(engine_runs_dir: Path, mini_model_dir: Path, tmp_path: Path) -> None:
    base = shutil.copytree(mini_model_dir, tmp_path / "base")
    (base / CARD).write_text("---\nlicense: other\nlicense_name: mine\nlanguage: xx\n---\n")
    checkpoint = shutil.copytree(find_checkpoint(engine_runs_dir / "zero2-lora"), tmp_path / "checkpoint")
    record = read_json(checkpoint / RECORD)
    record["arguments"] |= {"model_name": "team/base", "subset_name": ["DocVQA", "MSCOCO_t2i"]}
    write_json(checkpoint / RECORD, record)
    means = {"vqa": Mean(0.25, 0.1, 9, 10), "overall": Mean(0.5, 0.1, 35, 36)}
    scores = Scores("MMEB", "model", "0123", means)
    exported = Exported(PHI3_V, 1, torch.float32, is_adapter=True, has_lm_head=False, base_at_hand=True)
    folder = checkpoint / ENCODER_FOLDER
    write_card(folder, "my-model", RunRecord.read(checkpoint / RECORD), exported, BaseModel("team/base", base), scores)

    data = ModelCard.load(folder / CARD).data
    assert isinstance(data, ModelCardData)
    found = {key: data.get(key) for key in ("license", "license_name", "language", "base_model", "datasets")}
    assert found == {
        **{"license": "other", "license_name": "mine", "language": "en", "base_model": "team/base"},
        "datasets": ["TIGER-Lab/MMEB-train"],
    }
    kind = (data.get("base_model_relation"), data.library_name, data.pipeline_tag)
    assert kind == ("adapter", "peft", "feature-extraction")
    assert {"sentence-transformers", "vlm2vec", "phi3_v"} <= set(data.tags or [])
    results = {each.dataset_config: (each.dataset_type, each.metric_value) for each in data.eval_results or []}
    assert results == {"vqa": ("TIGER-Lab/MMEB-eval", 25.0), "overall": ("TIGER-Lab/MMEB-eval", 50.0)}
    (index,) = data.to_dict()["model-index"]
    assert index["name"] == "my-model"


def test_no_licence_nor_data_are_made_up(engine_runs_dir: Path, mini_model_dir: Path, tmp_path: Path) -> None:
    base = shutil.copytree(mini_model_dir, tmp_path / "base")
    (base / CARD).write_text("---\nlicense: [\n---\n")
    export(find_checkpoint(engine_runs_dir / "zero2"), tmp_path / "out", base_model=str(base))
    metadata = ModelCard.load(tmp_path / "out" / CARD).data.to_dict()
    assert metadata.keys() == {"library_name", "model_name", "pipeline_tag", "tags"}
