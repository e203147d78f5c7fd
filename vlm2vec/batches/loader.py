"""The loader: the global order as a `webdataset` pipeline, read ahead by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.utils.data
import webdataset

from vlm2vec.batches.collate import BatchReader, TrainingBatch
from vlm2vec.batches.layout import BatchLayout, lay_out
from vlm2vec.batches.order import GlobalBatch, GlobalOrder
from vlm2vec.errors import InputError


@dataclass(frozen=True)
class PlanSource:
    """Yields the plan of every step; with workers, worker w of n yields steps first + w, first + w + n, ...

    The loader takes from its workers in turn, so steps come in order however many there are.
    """

    order: GlobalOrder
    reader: BatchReader
    num_ranks: int
    first_step: int
    last_step: int

    def __call__(self) -> Iterator[tuple[GlobalBatch, BatchLayout]]:
        """The plans of this process's steps."""
        worker = torch.utils.data.get_worker_info()
        start, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self.first_step + start, self.last_step, stride):
            batch = self.order.batch(step)
            yield batch, lay_out(batch, self.reader.shards, self.reader.inputs.cost, self.num_ranks)


@dataclass(frozen=True)
class ReadStage:
    """The stage that reads a planned step; bad input travels as a value: a worker would bury it in a traceback."""

    reader: BatchReader

    def __call__(self, plan: tuple[GlobalBatch, BatchLayout]) -> TrainingBatch | InputError:
        """One rank's part of the step, or what is wrong with it."""
        try:
            return self.reader.read(*plan)
        except InputError as error:
            return error


def training_batches(source: PlanSource, num_workers: int) -> Iterator[TrainingBatch]:
    """This rank's part of every step from `source.first_step` on, in order.

    Args:
        source: The plan.
        num_workers: Processes that read, decode and crop ahead; 0 does it in this process.

    Raises:
        InputError: A sample cannot be read; the message names it.
    """
    pipeline = webdataset.DataPipeline(source, webdataset.map(ReadStage(source.reader)))
    for batch in webdataset.WebLoader(pipeline, batch_size=None, num_workers=num_workers):
        if isinstance(batch, InputError):
            raise batch
        yield batch
