from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from trials.fuzz_shards import CORRECT, REFUSED, TARGETS, in_own_process, make_world, read_shards, run

MUTATIONS = 48  # `python -m trials.fuzz_shards` makes 2,000


def test_damaged_files_give_a_clear_error_or_the_right_data(tmp_path: Path) -> None:
    outcomes = run(MUTATIONS, seed=1, work=tmp_path)
    assert [outcome for outcome in outcomes if not outcome.is_good] == []
    assert {outcome.target for outcome in outcomes} == set(TARGETS)
    assert {REFUSED, CORRECT} <= {outcome.outcome for outcome in outcomes}


def test_the_fuzzer_sees_crashes_tracebacks_and_wrong_data(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    assert in_own_process(lambda: os._exit(3))[0] == "crash"
    assert in_own_process(lambda: str(1 // 0))[0] == "traceback"
    other = replace(world, samples=(replace(world.samples[0], row=7), *world.samples[1:]))
    assert in_own_process(lambda: read_shards(other, world.shards)) == ("different data", "A/00000000")
