"""One rank of the whole training program, from its command line to its exit code."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial

from vlm2vec import train
from vlm2vec.batches import PlanSource
from vlm2vec.batches.step_plan import StepPlan
from vlm2vec.errors import InputError, run_program

UNREACHABLE = "http://store/Photos-00000.tar: no answer after 4 attempts"
UNREACHABLE_STEP = 2


class UnreachableSource(PlanSource):
    """The store does not answer this rank's planner any more."""

    def plan(self, step: int) -> StepPlan:
        if step == UNREACHABLE_STEP:
            raise InputError(UNREACHABLE)
        return super().plan(step)


def main(flags: list[str], unreachable_rank: int | None) -> None:
    """Trains as `python -m vlm2vec.train` does."""
    is_unreachable = os.environ["RANK"] == str(unreachable_rank)
    parts = replace(train.PARTS, source=UnreachableSource) if is_unreachable else train.PARTS
    sys.argv = ["vlm2vec.train", *flags]
    sys.exit(run_program(partial(train.main, parts)))
