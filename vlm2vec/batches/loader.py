"""The loader: the global order as a `webdataset` pipeline, read ahead by worker processes, chunk by chunk."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.utils.data
import webdataset

from vlm2vec.batches.collate import BatchReader, StepHeader, StepPlan
from vlm2vec.batches.layout import lay_out
from vlm2vec.batches.order import GlobalOrder
from vlm2vec.contrastive import Chunk, Phase, StepChunks
from vlm2vec.errors import InputError

# A step travels as messages: its header, then its chunks in the order in which they run.
Task = tuple[StepPlan, int] | InputError
Message = StepHeader | Chunk | InputError
_HEADER = -1


@dataclass(frozen=True)
class TrainingBatch:
    """One rank's part of a global batch, ready for the cached step. The chunks arrive while the step runs."""

    header: StepHeader
    chunks: StepChunks


@dataclass(frozen=True)
class PlanSource:
    """Yields what there is to make for every step; with n workers, worker w yields every n-th task from the w-th on.

    The loader takes from its workers in turn, so messages come in order however many workers there are. Every worker
    plans every step: reading and tokenising costs little beside decoding, which is shared.
    """

    order: GlobalOrder
    reader: BatchReader
    num_ranks: int
    first_step: int
    last_step: int
    hard_negatives: bool = False

    def __call__(self) -> Iterator[Task]:
        """The tasks of this process."""
        worker = torch.utils.data.get_worker_info()
        return islice(self._tasks(), worker.id, None, worker.num_workers) if worker else self._tasks()

    def _tasks(self) -> Iterator[Task]:
        reader = self.reader
        for step in range(self.first_step, self.last_step):
            batch = self.order.batch(step)
            layout = lay_out(batch, reader.shards, reader.inputs.cost, self.num_ranks, self.hard_negatives)
            try:
                plan = reader.plan(batch, layout)
            except InputError as error:  # as a value: a worker would bury it in a traceback
                yield error
                return
            yield plan, _HEADER
            yield from ((plan, number) for number in range(len(plan.chunks)))


@dataclass(frozen=True)
class ReadStage:
    """The stage that turns a task into a message; bad input travels as a value."""

    reader: BatchReader

    def __call__(self, task: Task) -> Message:
        """A header, a chunk, or what is wrong with it."""
        if isinstance(task, InputError):
            return task
        plan, number = task
        try:
            return plan.header if number == _HEADER else self.reader.chunk(plan, number)
        except InputError as error:
            return error


class TrainingBatches:
    """This rank's part of every step from `source.first_step` on, in order.

    Each batch's chunks must have run before the next batch is asked for: they come out of the same stream.

    Args:
        source: The plan.
        num_workers: Processes that read, decode and crop ahead; 0 does it in this process.
        pin_memory: Put chunks into page-locked memory, for an accelerator.

    Attributes:
        seconds_waiting: How long this process has waited for data so far.
    """

    def __init__(self, source: PlanSource, num_workers: int, pin_memory: bool = False) -> None:
        pipeline = webdataset.DataPipeline(source, webdataset.map(ReadStage(source.reader)))
        self._loader = webdataset.WebLoader(
            pipeline,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=_outlive_signals,
            # Its own, so that starting to load draws nothing from the random state that a checkpoint restores.
            generator=torch.Generator(),
        )
        self.seconds_waiting = 0.0

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Yields the steps.

        Raises:
            InputError: A sample cannot be read; the message names it.
        """
        messages = self._messages()
        for header in messages:
            assert isinstance(header, StepHeader), "a step's chunks must run before the next step is asked for"
            phases = [Phase(self._chunks(messages, count), count, images) for count, images in header.phases]
            yield TrainingBatch(header, StepChunks(*phases))

    def _messages(self) -> Iterator[StepHeader | Chunk]:
        loader = iter(self._loader)
        while True:
            start = time.perf_counter()
            message: Message | None = next(loader, None)
            self.seconds_waiting += time.perf_counter() - start
            if message is None:
                return
            if isinstance(message, InputError):
                raise message
            yield message

    @staticmethod
    def _chunks(messages: Iterator[StepHeader | Chunk], count: int) -> Iterator[Chunk]:
        for message in islice(messages, count):
            assert isinstance(message, Chunk)
            yield message


def _outlive_signals(worker: int) -> None:
    """A signal to the whole process group asks the ranks to save; a worker that ended by it would end its rank."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
