"""A family that exists only in tests/rig/made_up_family.py can be trained and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data_prep.mini_mmeb import EVAL_FOLDER
from eval import mmeb
from tests.distributed.workers.made_up_family import main
from tests.rig.comparing import assert_close_relative
from tests.rig.made_up_family import MadeUpModel, write_made_up_model
from trials.exactness_grid import TOLERANCE
from trials.rig.forked import run_forked
from trials.rig.run_flags import run_flags
from trials.rig.states import differences
from vlm2vec import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.export import export
from vlm2vec.training.checkpoints.writer import find_checkpoint

pytestmark = pytest.mark.numeric

STEPS, SAVED = 3, 2
COMMON = [
    *("--global_batch_size", "8", "--max_steps", str(STEPS), "--logging_steps", "2", "--save_steps", str(SAVED)),
    *("--learning_rate", "1e-3", "--temperature", "0.05", "--max_len", "64", "--chunk_tokens", "256"),
    *("--subset_name", "ColorVQA", "Recolor"),
]
RUNS: dict[str, list[str]] = {
    "zero2-lora": ["--lora", "--prompt_format", "asked", "--max_pixels", "2048", "--dataloader_num_workers", "1"],
    "zero3": ["--bf16", "--gradient_checkpointing", "--dataloader_num_workers", "0"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made_up") / "base"
    write_made_up_model(folder)
    return folder


@pytest.fixture(scope="module")
def runs(model: Path, mini_shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On 2 ranks: `straight/NAME`, and `resumed/NAME` from its checkpoint in the middle; `errors.json` of gradients."""
    root = tmp_path_factory.mktemp("made_up_runs")
    jobs: dict[str, list[list[str]]] = {"2": [], "3": []}
    for name, flags in RUNS.items():
        engine = name.split("-")[0]
        point = str(root / "straight" / name / f"checkpoint-{SAVED}")
        for kind, more in (("straight", []), ("resumed", ["--resume", point])):
            flags_of_run = run_flags(model, mini_shards_dir, root / kind / name, engine, *COMMON, *flags, *more)
            jobs[engine[-1]].append(flags_of_run)
    (root / "jobs.json").write_text(json.dumps(jobs))
    run_forked(2, main, [root / "jobs.json", root / "errors.json"], root)
    return root


def test_the_gradient_is_that_of_one_graph(runs: Path) -> None:
    errors = json.loads((runs / "errors.json").read_text())
    assert len(errors) == 16
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, runs: Path) -> None:
    straight, resumed = (runs / kind / name / f"checkpoint-{STEPS}" for kind in ("straight", "resumed"))
    assert differences(straight.with_name(f"checkpoint-{SAVED}"), straight)
    assert differences(straight, resumed) == []


@pytest.fixture(scope="module")
def exported(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`, `adapter` and `merged`, each compared with its checkpoint by the export itself."""
    root = tmp_path_factory.mktemp("made_up_exported")
    for output, name in (("whole", "zero3"), ("adapter", "zero2-lora"), ("merged", "zero2-lora")):
        checkpoint = find_checkpoint(runs / "straight" / name)
        _, checked = export(checkpoint, root / output, merge_lora=output == "merged", check=True)
        assert checked is not None
        assert checked.num_items == 5
    return root


def vectors(folder: Path, **options: Any) -> torch.Tensor:
    image = Image.linear_gradient("L")
    texts = ["a text", "<|image_1|> and a text", None]
    return VLM2Vec.from_pretrained(folder).encode(texts=texts, images=[None, image, image.resize((60, 20))], **options)


def test_exported_folders_have_the_published_names(exported: Path, model: Path) -> None:
    base, card = load_file(model / "model.safetensors"), (exported / "adapter" / "README.md").read_text()
    for kind in ("whole", "merged"):
        weights = load_file(exported / kind / "model.safetensors")
        assert {name: each.shape for name, each in weights.items()} == {name: each.shape for name, each in base.items()}
        assert torch.equal(weights["text.head.weight"], base["text.head.weight"])
        changed = {name for name, each in weights.items() if not torch.equal(each, base[name])}
        assert {"text.blocks.0.look.weight", "eyes.first.weight", "late.weight"} <= changed
        config = json.loads((exported / kind / "config.json").read_text())
        assert config["architectures"] == [MadeUpModel.causal_class]
    adapter = load_file(exported / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.text.blocks.0.look.lora_A.weight" in adapter
    assert not any(".tower." in name or ".layers." in name for name in adapter)
    assert_close_relative(vectors(exported / "adapter"), vectors(exported / "merged"), 1e-5)
    assert f"\nfrom {MadeUpModel.__module__} import MadeUpModel\n" in card
    assert "- made_up\n" in card
    for kind, max_pixels, name in (("whole", 3072, "plain"), ("adapter", 2048, "asked"), ("merged", 2048, "asked")):
        settings = json.loads((exported / kind / "vlm2vec_config.json").read_text())
        assert (settings["max_pixels"], settings["max_len"], settings["prompt_format"]["name"]) == (
            max_pixels,
            64,
            name,
        )
        assert "num_crops" not in settings


def test_sentence_transformers_reads_an_exported_folder(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    loaded = SentenceTransformer(str(exported / "adapter"), trust_remote_code=True, device="cpu")
    image = Image.linear_gradient("L")
    inputs = ["a text", {"text": "and a text", "image": image}, image.resize((60, 20))]
    assert_close_relative(loaded.encode(inputs), vectors(exported / "adapter"), 1e-5)


def test_an_exported_folder_is_scored(exported: Path, mini_mmeb_dir: Path, tmp_path: Path) -> None:
    """As it was trained; small batches and large ones give the same ranking."""
    data = mini_mmeb_dir / EVAL_FOLDER

    def score(output: str, *flags: str) -> dict[str, Any]:
        mmeb.main(
            [
                *("--model_name", str(exported / "adapter"), "--dataset_name", str(data)),
                *("--image_dir", str(data / "images"), "--subset_name", "ColorVQA"),
                *("--encode_output_path", str(tmp_path / output), "--dataloader_num_workers", "0", *flags),
            ]
        )
        scores: dict[str, Any] = json.loads((tmp_path / output / "scores.json").read_text())
        return scores

    small, packed = score("small", "--per_device_eval_batch_size", "3"), score("packed")
    assert small["datasets"] == packed["datasets"]
    assert packed["datasets"]["ColorVQA"]["num_pred"] == 12
    model = packed["model"]
    assert (model["max_pixels"], model["max_len"], model["prompt_format"]["name"]) == (2048, 64, "asked")
    with pytest.raises(InputError, match="--max_pixels 512 instead of 2048"):
        score("changed", "--max_pixels", "512")
    with pytest.raises(InputError, match="num_crops: a made_up has no such limit"):
        score("unknown", "--num_crops", "4")
