"""The seam between families: one that is nowhere but in tests/rig/made_up_family.py is trained and exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.workers.made_up_family import main
from tests.rig.made_up_family import write_made_up_model
from trials.exactness import TOLERANCE
from trials.rig.forked import run_forked
from trials.rig.run_flags import run_flags
from trials.rig.states import differences

pytestmark = pytest.mark.numeric

STEPS, SAVED = 4, 2
COMMON = [
    *("--global_batch_size", "8", "--max_steps", str(STEPS), "--logging_steps", "3", "--save_steps", str(SAVED)),
    *("--learning_rate", "1e-3", "--temperature", "0.05", "--max_len", "64", "--chunk_tokens", "256"),
    *("--subset_name", "ColorVQA", "Recolor"),
]
RUNS: dict[str, list[str]] = {
    "zero2": ["--dataloader_num_workers", "1"],
    "zero2-lora": ["--lora", "--dataloader_num_workers", "0"],
    "zero3": ["--bf16", "--dataloader_num_workers", "0"],
    "zero3-lora": ["--lora", "--gradient_checkpointing", "--dataloader_num_workers", "0"],
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
