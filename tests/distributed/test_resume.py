"""Four steps equal two steps, a checkpoint and two steps: bit for bit on the same ranks, 1e-6 on others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_prep.mini_mmeb import TRAIN_FOLDER
from data_prep.mini_model import build_mini_model
from tests.distributed.workers.resume import SIGNALLED_STEP, UNWRITABLE_STEP, main
from tests.rig.made_up_sidecar import write_sidecar
from trials.chaos import add_dropout
from trials.rig.forked import run_forked
from trials.rig.run_flags import run_flags
from trials.rig.states import differences, state_of
from trials.rig.tiny import PHI3_V
from vlm2vec.backbones.interface import PROJECTOR, VISION_TOWER
from vlm2vec.backbones.registry import family_of_folder
from vlm2vec.export import export
from vlm2vec.shards import ShardSet
from vlm2vec.training.checkpoints.record import read_whole

STEPS, SAVED = 4, 2
LAST = f"checkpoint-{STEPS}"
COMMON = [
    *("--global_batch_size", "8", "--max_steps", str(STEPS), "--logging_steps", "3", "--save_steps", str(SAVED)),
    *("--learning_rate", "1e-3", "--temperature", "0.05", "--max_len", "64", "--chunk_tokens", "256"),
    *("--subset_name", "ColorVQA", "Recolor", "--dataloader_num_workers", "0"),
]
# What a teacher mined; the folder is added where these are.
OF_SIDECAR = ["--mined_negatives", "2", "--mined_clusters", "True", "--homogeneous_batch_size", "4"]
# The engine file and what else differs. ZeRO-3 comes last: its engine replaces torch.nn.functional.linear for the rest
# of the process.
RUNS: dict[str, tuple[str, list[str]]] = {
    "zero1": ("zero1", ["--dataloader_num_workers", "2"]),
    "zero2-lora": (
        "zero2",
        ["--lora", "--learn_temperature", "--temperature_by", "subset", "--dataloader_num_workers", "1", *OF_SIDECAR],
    ),
    "zero2-bf16": ("zero2_offload", ["--bf16"]),
    "zero2-lora-qwen2_5_vl": ("zero2", ["--lora", "--dataloader_num_workers", "1"]),
    "zero3-lora-bf16": ("zero3", ["--lora", "--bf16", "--gradient_checkpointing"]),
    "zero3-bf16": ("zero3", ["--bf16"]),
    "zero3-bf16-qwen3_vl": ("zero3", ["--bf16", "--gradient_checkpointing", "--freeze_vision_tower"]),
}
FROZEN = "zero3-bf16-qwen3_vl"
DISTURBED = "zero1"


def run_jobs(ranks: int, jobs: Sequence[tuple[str, list[str]]], root: Path) -> list[str]:
    """The output of each rank."""
    root.mkdir(exist_ok=True)
    (root / "jobs.json").write_text(json.dumps(jobs))
    return run_forked(ranks, main, [root / "jobs.json"], root)


def family_of(name: str) -> str:
    """The model family of a run."""
    word = name.rpartition("-")[2]
    return word if word.startswith("qwen") else PHI3_V


@pytest.fixture(scope="module")
def dropout_models(mini_mmeb_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By family the miniature's model, with dropout."""
    root = tmp_path_factory.mktemp("dropout")
    for family in sorted(set(map(family_of, RUNS))):
        build_mini_model(mini_mmeb_dir / TRAIN_FOLDER, root / family, seed=0, family=family)
        add_dropout(root / family)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="module")
def runs(dropout_models: dict[str, Path], mini_shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On 2 ranks: `straight/NAME`, and `resumed/NAME`, which resumes from the first one's checkpoint in the middle.

    And `signalled` and `full disk`, disturbed runs like straight/zero1.
    """
    root = tmp_path_factory.mktemp("resume")
    sidecar = write_sidecar(root / "sidecar", ShardSet.open(mini_shards_dir))

    def job(kind: str, name: str, output: str, *extra: str) -> tuple[str, list[str]]:
        engine, own = RUNS[name]
        model = dropout_models[family_of(name)]
        mined = ["--mined", str(sidecar)] if OF_SIDECAR[0] in own else []
        return kind, run_flags(model, mini_shards_dir, root / output, engine, *COMMON, *own, *mined, *extra)

    limited = ["--save_steps", "1", "--save_total_limit", "1"]
    jobs = [
        job("signalled", DISTURBED, "signalled"),
        job("plain", DISTURBED, "signalled", "--resume", "auto"),
        job("full disk", DISTURBED, "full disk", *limited, "--max_steps", str(UNWRITABLE_STEP + 1)),
    ]
    for name in RUNS:
        point = str(root / "straight" / name / f"checkpoint-{SAVED}")
        jobs += [
            job("plain", name, f"straight/{name}"),
            job("plain", name, f"resumed/{name}", "--resume", point),
        ]
    outputs = run_jobs(2, jobs, root)
    (root / "output.txt").write_text(outputs[0])
    return root


def log_of(run: Path) -> list[dict[str, Any]]:
    """A run's log without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    clock = ("per_second", "milliseconds", "_share", "time_ms", "peak_memory")
    return [{name: value for name, value in line.items() if not any(word in name for word in clock)} for line in lines]


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, runs: Path) -> None:
    straight, resumed = runs / "straight" / name, runs / "resumed" / name
    assert differences(straight / f"checkpoint-{SAVED}", straight / LAST)
    assert differences(straight / LAST, resumed / LAST) == []
    records = [json.loads((run / LAST / "run.json").read_text()) for run in (straight, resumed)]
    assert records[0]["temperature"] == records[1]["temperature"]
    # The window of the third step began before the checkpoint.
    assert [line["step"] for line in log_of(straight)] == [3, 4]
    assert log_of(resumed) == log_of(straight)


@pytest.mark.parametrize("name", [name for name in RUNS if "--bf16" in RUNS[name][1] and "--lora" not in RUNS[name][1]])
def test_bf16_runs_keep_float32_masters_and_moments(name: str, runs: Path) -> None:
    """Small updates would be lost in masters that had been rounded to bf16."""
    state = state_of(runs / "straight" / name / LAST)
    kept = {
        path: value
        for path, value in state.items()
        if isinstance(value, torch.Tensor)
        and value.numel() > 1
        and any(word in path for word in ("fp32", "exp_avg", "exp_avg_sq"))
    }
    assert {word for path in kept for word in ("fp32", "exp_avg_sq") if word in path} == {"fp32", "exp_avg_sq"}
    for path, value in kept.items():
        assert value.dtype == torch.float32, path
        rounded = (value == value.bfloat16().float()).float().mean()
        assert rounded < 0.9, f"{path}: {rounded:.0%} are bf16 values"


def test_a_frozen_tower_stays_and_its_projector_learns(
    runs: Path, dropout_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = dropout_models[family_of(FROZEN)]
    _, checked = export(runs / "straight" / FROZEN / LAST, tmp_path / "exported", check=True)
    assert checked is not None
    weights, base = load_file(tmp_path / "exported" / "model.safetensors"), load_file(folder / "model.safetensors")
    unchanged = {name for name, each in base.items() if torch.equal(weights[name], each.to(weights[name].dtype))}
    backbone = family_of_folder(folder).backbone.from_pretrained(folder)
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    parts = backbone.freezable()
    assert {names[id(parameter)] for parameter in parts[VISION_TOWER]} <= unchanged
    # A vector of ones that learns little is still ones in bfloat16.
    assert not {names[id(parameter)] for parameter in parts[PROJECTOR] if parameter.dim() > 1} & unchanged


def test_a_signal_to_one_rank_saves_and_stops_all(runs: Path) -> None:
    """The run stopped at the boundary before the step, resumed by --resume auto, and nothing differs."""
    output = (runs / "output.txt").read_text()
    assert f"\nstopped at step {SIGNALLED_STEP} by SIGUSR1; restart with --resume auto to resume\n" in output
    assert f"python -m vlm2vec.export {runs / 'signalled'} " in output
    assert f"tensorboard --logdir {runs / 'signalled'}\n" in output
    assert differences(runs / "signalled" / LAST, runs / "straight" / DISTURBED / LAST) == []
    assert log_of(runs / "signalled") == log_of(runs / "straight" / DISTURBED)


def test_a_full_disk_keeps_the_previous_checkpoint_and_the_run_continues(runs: Path) -> None:
    output = (runs / "output.txt").read_text()
    warnings = [line for line in output.splitlines() if line.startswith("warning:")]
    [warning] = [line for line in warnings if "max_len is 64" not in line]  # of models that were saved with another
    assert f"checkpoint-{UNWRITABLE_STEP} could not be written: rank 1: " in warning
    assert "the run continues (last valid checkpoint: step 1)" in warning
    # The next one could be written, and only then the first one went.
    run = runs / "full disk"
    assert sorted(path.name for path in run.iterdir()) == [
        f"checkpoint-{UNWRITABLE_STEP + 1}",
        "config.yaml",
        "latest",
        "log.jsonl",
        "tensorboard",
    ]
    assert read_whole(run / f"checkpoint-{UNWRITABLE_STEP + 1}").step == UNWRITABLE_STEP + 1
