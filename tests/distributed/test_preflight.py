"""Runs that cannot work fail before the first step on all ranks; checks do not change runs that can."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.distributed.workers.preflight import FITTING_TOKENS, main
from trials.rig.forked import run_forked
from trials.rig.run_flags import run_flags
from trials.rig.states import differences
from vlm2vec.training.checkpoints.disk_space import checkpoint_bytes
from vlm2vec.training.checkpoints.record import read_whole
from vlm2vec.training.encoder import build_encoder
from vlm2vec.training.flags.run import parse_arguments

STEPS = 2
LAST = f"checkpoint-{STEPS}"
COMMON = [
    *("--max_steps", str(STEPS), "--global_batch_size", "6", "--temperature", "0.05", "--max_len", "64"),
    *("--subset_name", "ColorVQA", "--dataloader_num_workers", "0", "--chunk_tokens", "256"),
]
# The ZeRO stage and what else differs; ZeRO-3 last, as its engine replaces torch.nn.functional.linear.
RUNS: dict[str, tuple[int, list[str]]] = {
    "zero2-lora": (2, ["--lora", "--lora_dropout", "0.2"]),
    "zero2-bf16": (2, ["--bf16"]),
    "zero3": (3, []),
    "zero3-bf16": (3, ["--bf16"]),
}


@pytest.fixture(scope="module")
def runs(mini_model_dir: Path, mini_shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On 2 ranks: what each attempt led to, and a pair of runs for each of RUNS."""
    root = tmp_path_factory.mktemp("preflight")
    jobs = {"refused": run_flags(mini_model_dir, mini_shards_dir, root / "refused", "zero2", *COMMON)}
    for name, (stage, extra) in RUNS.items():
        own = [*COMMON, "--learning_rate", "1e-3", *extra]
        jobs[name] = run_flags(mini_model_dir, mini_shards_dir, root / name, f"zero{stage}", *own)
    run_forked(2, main, [jobs, root], root)
    return root


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("arguments", "is not as on rank 0: --learning_rate is 0.002 instead of 0.001"),
        ("code", "is not as on rank 0: file vlm2vec/contrastive/loss.py is other instead of same"),
        ("data", "the shards' files exist but cannot be read: ColorVQA-000.tar: cannot read sample (I/O error)"),
    ],
)
def test_ranks_that_differ_are_named_once(case: str, text: str, runs: Path) -> None:
    first, second = (json.loads((runs / f"rank{rank}.json").read_text())[case] for rank in range(2))
    assert first.startswith("says: rank 1: ")
    assert text in first
    assert second == "exits: 2"


def test_a_chunk_too_large_names_the_flag(runs: Path) -> None:
    """Every rank has its own memory, and says so itself."""
    for rank in range(2):
        text = json.loads((runs / f"rank{rank}.json").read_text())["memory"]
        assert text.startswith(f"says: rank {rank} on ")
        remedy = f"set --chunk_tokens {FITTING_TOKENS} (now {2 * FITTING_TOKENS}), or add --gradient_checkpointing"
        assert text.endswith(f"ran out of memory in pass 2, the largest chunk: {remedy}")


@pytest.mark.parametrize("name", RUNS)
def test_a_rehearsal_leaves_no_trace(name: str, runs: Path) -> None:
    """All of a checkpoint: weights, moments, random states after two steps."""
    assert read_whole(runs / name / LAST).step == STEPS
    assert differences(runs / name / LAST, runs / f"{name} without" / LAST) == []


@pytest.mark.parametrize("name", RUNS)
def test_the_estimate_of_a_checkpoint_is_close(name: str, runs: Path, mini_model_dir: Path) -> None:
    stage, extra = RUNS[name]
    arguments = parse_arguments(run_flags(mini_model_dir, runs, runs, f"zero{stage}", *COMMON, *extra))
    encoder = build_encoder(arguments.resolve(1, {"zero_optimization": {"stage": stage}}).encoder)
    is_lora = "--lora" in extra
    if "--bf16" in extra:
        encoder = encoder.bfloat16()  # as the engine does
    engine = SimpleNamespace(module=encoder, zero_optimization_stage=lambda: stage)
    files = read_whole(runs / name / LAST).files
    written = sum(size for path, size in files.items() if path.endswith(".pt"))
    # What pickles say of their tensors is much only of a small model.
    assert checkpoint_bytes(engine, exclude_frozen=is_lora) == pytest.approx(written, rel=0.1, abs=120_000)
