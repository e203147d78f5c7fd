"""Resuming with the same command on a different number of ranks or ZeRO stage gives the same losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.test_resume import COMMON, LAST, SAVED, STEPS, log_of, run_jobs
from trials.rig.run_flags import run_flags
from vlm2vec.training.checkpoints.record import read_whole

pytestmark = pytest.mark.numeric

# Small sub-groups, so that ZeRO-3 has several of them even in a tiny model.
SUB_GROUP_SIZE = 20_000
TOLERANCE = 1e-6
# By name: ranks and ZeRO stage of the first steps, and of the others.
MOVES: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "2 to 1 ranks, ZeRO-3 to 2": ((2, 3), (1, 2)),
    "2 ranks, ZeRO-2 to 3": ((2, 2), (2, 3)),
    "2 to 4 ranks, ZeRO-2": ((2, 2), (4, 2)),
    "4 to 2 ranks, ZeRO-3": ((4, 3), (2, 3)),
}


@pytest.fixture(scope="module")
def runs(mini_model_dir: Path, mini_shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of MOVES, and `reference`: 2 ranks, ZeRO-2, undisturbed."""
    root = tmp_path_factory.mktemp("elastic")
    zero3 = json.loads((Path(__file__).parents[2] / "ds_configs/zero3.json").read_text())
    zero3["zero_optimization"]["sub_group_size"] = SUB_GROUP_SIZE
    (root / "zero3.json").write_text(json.dumps(zero3))

    def flags(output: str, stage: int, *extra: str) -> list[str]:
        own = [*COMMON, *(["--deepspeed", str(root / "zero3.json")] if stage == 3 else [])]
        own += ["--logging_steps", "1", "--weight_decay", "0.1", "--learning_rate", "1e-4", "--warmup_steps", "1"]
        return run_flags(mini_model_dir, mini_shards_dir, root / output, f"zero{stage}", *own, *extra)

    def firsts(ranks: int) -> list[tuple[str, list[str]]]:
        stages = sorted({stage for (before, stage), _ in MOVES.values() if before == ranks})
        return [("plain", flags(f"first-{ranks}-{stage}", stage)) for stage in stages]

    def moved(after: int, before: int) -> list[tuple[str, list[str]]]:
        point = f"checkpoint-{SAVED}"
        return [
            ("plain", flags(name, to[1], "--resume", str(root / f"first-{of[0]}-{of[1]}" / point)))
            for name, (of, to) in MOVES.items()
            if (of[0], to[0]) == (before, after)
        ]

    run_jobs(2, [*firsts(2), *moved(2, 2)], root / "logs-2")
    run_jobs(1, moved(1, 2), root / "logs-1")
    run_jobs(4, [*moved(4, 2), *firsts(4)], root / "logs-4")
    run_jobs(2, moved(2, 4), root / "logs-4-2")
    return root


@pytest.mark.parametrize("name", MOVES)
def test_the_steps_after_a_move_are_those_of_the_undisturbed_run(name: str, runs: Path) -> None:
    (_, _), (ranks, stage) = MOVES[name]
    expected, got = log_of(runs / "first-2-2"), log_of(runs / name)
    assert [line["step"] for line in got] == list(range(SAVED + 1, STEPS + 1))
    for before, after in zip(expected[SAVED:], got, strict=True):
        for figure in ("loss", "gradient_norm", "learning_rate"):
            assert after[figure] == pytest.approx(before[figure], rel=TOLERANCE)
    record = read_whole(runs / name / LAST)
    assert (record.num_ranks, record.zero_stage, record.step) == (ranks, stage, STEPS)
    assert not list((runs / name).glob(".tmp-*"))
