"""One rank of a run that may be killed: the training program, which also notes the samples of each step."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer  # compiles something when it is imported, for seconds
import peft
import torch
import transformers
from torch.utils import tensorboard

from vlm2vec import train
from vlm2vec.batches import TrainingBatch, TrainingBatches
from vlm2vec.training.arguments import parse_arguments
from vlm2vec.training.engine import close_ranks, initialize_ranks

# What a run imports on its way; a forked rank finds it there.
PRELOADED = (deepspeed, peft, torch, transformers, tensorboard)


class NotingBatches(TrainingBatches):
    """Notes the digest of every batch before its step runs."""

    notes: Path

    def __iter__(self) -> Iterator[TrainingBatch]:
        with self.notes.open("a") as notes:
            for batch in super().__iter__():
                notes.write(json.dumps({"step": batch.header.step, "digest": batch.header.layout.digest}) + "\n")
                notes.flush()
                yield batch


def main(rank: int, num_ranks: int, port: int, flags: list[str], output: Path) -> None:
    """Trains as one rank, in a process group of its own."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as in a rank that was not forked itself
    log = os.open(output / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    NotingBatches.notes = output / "samples.jsonl" if rank == 0 else Path(os.devnull)
    train.TrainingBatches = NotingBatches  # type: ignore[misc]
    device = initialize_ranks(120)
    code = train.run(parse_arguments(flags), device)
    close_ranks()
    sys.exit(code)
