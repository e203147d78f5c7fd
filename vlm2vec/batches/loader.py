"""The training loader: one process plans steps ahead, worker processes make their chunks."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from vlm2vec.batches.layout import lay_out
from vlm2vec.batches.order import GlobalOrder
from vlm2vec.batches.reader import BatchReader, MadeChunk
from vlm2vec.batches.step_plan import PlannedItem, StepHeader, StepPlan
from vlm2vec.batches.worker import prepare_worker
from vlm2vec.contrastive import Chunk, Phase, StepChunks
from vlm2vec.errors import InputError
from vlm2vec.mined.rows import MinedRows

# Chunks that each worker process makes ahead. They are in shared memory (/dev/shm), up to 0.5 GiB each; torch's default
# of two would nearly double a node's need (full_2048 on 8 ranks: 12.7 GiB).
CHUNKS_AHEAD = 1
# A worker's task: a chunk, or None as the mark of a new step. An error in a step's plan is passed through as a task
# too, so that it is raised in the order of steps.
Task = list[PlannedItem] | InputError | None
Message = MadeChunk | InputError | None


@dataclass(frozen=True)
class TrainingBatch:
    """One rank's part of a global batch, ready for the cached step. The chunks arrive while the step runs."""

    header: StepHeader
    chunks: StepChunks


@dataclass(frozen=True)
class PlanSource(IterableDataset[StepPlan | InputError]):
    """Plans one rank's part of every step.

    Attributes:
        order: The global order.
        reader: Reads the items of one rank.
        num_ranks: Number of ranks that share a step.
        first_step: The first step to plan.
        last_step: The step after the last one.
        hard_negatives: Whether the samples' hard negatives are used.
        mined: The used parts of a teacher's sidecar; None without one.
        damaged: Samples (subset, position) known to be unreadable; others replace them.
    """

    order: GlobalOrder
    reader: BatchReader
    num_ranks: int
    first_step: int
    last_step: int
    hard_negatives: bool = False
    mined: MinedRows | None = None
    damaged: Set[tuple[str, int]] = frozenset()

    def __iter__(self) -> Iterator[StepPlan | InputError]:
        """Yields the steps in order. The first error ends them, as a value: a worker would bury it in a traceback."""
        for step in range(self.first_step, self.last_step):
            try:
                yield self.plan(step)
            except InputError as error:
                yield error
                return

    def plan(self, step: int) -> StepPlan:
        """Plans one step.

        Raises:
            InputError: The shards cannot be reached, or their content cannot be used.
        """
        reader = self.reader
        batch = self.order.batch(step, self.damaged)
        layout = lay_out(
            batch,
            reader.shards,
            reader.inputs.cost,
            self.num_ranks,
            self.hard_negatives,
            self.mined,
            self.damaged,
        )
        return reader.plan(batch, layout)


@dataclass(frozen=True)
class ChunkMaker(Dataset[Message]):
    """Makes the chunk of each task; bad input is returned as a value."""

    reader: BatchReader

    def __getitem__(self, task: Task) -> Message:
        """Returns the chunk, or the error."""
        if task is None or isinstance(task, InputError):
            return task
        try:
            return self.reader.chunk(task)
        except InputError as error:
            return error


class TrainingBatches:
    """This rank's part of every step from `source.first_step` on, in order.

    Each batch's chunks must have run, or `replace` must have been called, before the next batch is requested: all come
    from the same stream.

    Args:
        source: Plans the steps.
        num_workers: Number of processes that make chunks ahead, besides one that plans steps; 0: all in this process.
        pin_memory: Put chunks into page-locked memory, for an accelerator.

    Attributes:
        damage: Samples (subset, position) found unreadable on this rank in the current step, with the reason.
    """

    def __init__(self, source: PlanSource, num_workers: int, pin_memory: bool = False) -> None:
        self._source = source
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._starts_again = False
        self.damage: dict[tuple[str, int], str] = {}

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Yields the steps in order.

        Raises:
            InputError: The shards cannot be reached, or their content cannot be used; the message names the sample.
        """
        while self._source.first_step < self._source.last_step:
            tasks = _Tasks(self._source, self._num_workers)
            maker = ChunkMaker(self._source.reader)
            ahead = CHUNKS_AHEAD if self._num_workers else None
            loader = _loader(
                maker, self._num_workers, sampler=tasks, pin_memory=self._pin_memory, prefetch_factor=ahead
            )
            messages = iter(loader)
            while not self._starts_again and self._source.first_step < self._source.last_step:
                self.damage = {}
                mark = next(self._received(messages, 1))
                assert mark is None, "a step's chunks must run before the next step is asked for"
                header = tasks.headers.popleft()
                phases = [Phase(self._chunks(messages, count), count, images) for count, images in header.phases]
                yield TrainingBatch(header, StepChunks(*phases))
                if not self._starts_again:
                    self._source = dataclasses.replace(self._source, first_step=header.step + 1)
            self._starts_again = False

    def replace(self, damaged: Set[tuple[str, int]]) -> None:
        """Yields the current step again with damaged samples replaced; they stay replaced in later steps.

        Args:
            damaged: Samples (subset, position), which must be the same on every rank.
        """
        self._source = dataclasses.replace(self._source, damaged=self._source.damaged | damaged)
        self._starts_again = True

    def _chunks(self, messages: Iterator[Message], count: int) -> Iterator[Chunk]:
        for message in self._received(messages, count):
            assert message is not None
            self.damage.update({(each.subset, each.position): reason for each, reason in message.damage})
            yield message.chunk

    def _received(self, messages: Iterator[Message], count: int) -> Iterator[MadeChunk | None]:
        for _ in range(count):
            message = next(messages)
            if isinstance(message, InputError):
                raise message
            yield message


class _Tasks:
    """Tasks for the workers; their loader takes the next one, in this process, when a worker has room for more.

    Attributes:
        headers: Headers of the steps whose mark was given to a worker.
    """

    def __init__(self, source: PlanSource, num_workers: int) -> None:
        self._source = source
        self._num_workers = num_workers
        self.headers: deque[StepHeader] = deque()

    def __iter__(self) -> Iterator[Task]:
        """Yields the mark and the chunks of each step."""
        for plan in _loader(self._source, min(self._num_workers, 1)):
            if isinstance(plan, InputError):
                yield plan
                return
            self.headers.append(plan.header)
            yield None
            yield from plan.chunks


def _loader(dataset: Dataset[Any], num_workers: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=prepare_worker,
        # A separate generator: the loader draws a seed, which would change the state that a checkpoint restores.
        generator=torch.Generator(),
        **options,
    )
