"""One rank of a run that may be killed: the training program, which also records the samples of each step."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec import train
from vlm2vec.batches import TrainingBatch, TrainingBatches
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.training.flags.run import parse_arguments

SAMPLES = "samples.jsonl"


class NotingBatches(TrainingBatches):
    """Records the digest of every batch before its step runs."""

    notes: Path

    def __iter__(self) -> Iterator[TrainingBatch]:
        with self.notes.open("a") as notes:
            for batch in super().__iter__():
                notes.write(json.dumps({"step": batch.header.step, "digest": batch.header.layout.digest}) + "\n")
                notes.flush()
                yield batch


def main(flags: list[str], output: Path) -> None:
    """Trains as one rank."""
    device = initialize_ranks(COLLECTIVE_SECONDS)
    NotingBatches.notes = output / SAMPLES if dist.get_rank() == 0 else Path(os.devnull)
    code = train.run(parse_arguments(flags), device, replace(train.PARTS, batches=NotingBatches))
    close_ranks()
    sys.exit(code)
