"""The training loader: one process plans steps ahead, worker processes make their chunks."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Set
from dataclasses import dataclass

from torch.utils.data import Dataset, IterableDataset

from vlm2vec.batches.layout import lay_out
from vlm2vec.batches.order import GlobalOrder
from vlm2vec.batches.reader import BatchReader, MadeChunk
from vlm2vec.batches.step_plan import PlannedItem, StepHeader, StepPlan
from vlm2vec.batches.worker import end_workers, process_loader
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
    """This rank's part of every step from `source.first_step` on, in order. Call `close` if not all are wanted.

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
        self._running: tuple[Iterator[Message], _Tasks] | None = None
        self.damage: dict[tuple[str, int], str] = {}

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Yields the steps in order.

        Raises:
            InputError: The shards cannot be reached, or their content cannot be used; the message names the sample.
        """
        while self._source.first_step < self._source.last_step:
            yield from self._until_replacement()
            self.close()

    def close(self) -> None:
        """Ends the worker processes. Chunks of the last batch that have not run are lost."""
        if self._running is not None:
            messages, tasks = self._running
            end_workers(messages)
            end_workers(tasks.plans)
        self._running = None

    def replace(self, damaged: Set[tuple[str, int]]) -> None:
        """Yields the current step again with damaged samples replaced; they stay replaced in later steps.

        Args:
            damaged: Samples (subset, position), which must be the same on every rank.
        """
        self._source = dataclasses.replace(self._source, damaged=self._source.damaged | damaged)
        self._starts_again = True

    def _until_replacement(self) -> Iterator[TrainingBatch]:
        """Yields the steps up to the last one, or to one that `replace` was called for."""
        tasks = _Tasks(self._source, self._num_workers)
        maker = ChunkMaker(self._source.reader)
        ahead = CHUNKS_AHEAD if self._num_workers else None
        messages: Iterator[Message] = iter(
            process_loader(maker, self._num_workers, sampler=tasks, pin_memory=self._pin_memory, prefetch_factor=ahead)
        )
        self._running = messages, tasks
        self._starts_again = False
        while not self._starts_again and self._source.first_step < self._source.last_step:
            self.damage = {}
            mark = next(self._received(messages, 1))
            assert mark is None, "a step's chunks must run before the next step is asked for"
            header = tasks.headers.popleft()
            phases = [Phase(self._chunks(messages, count), count, images) for count, images in header.phases]
            yield TrainingBatch(header, StepChunks(*phases))
            if not self._starts_again:
                self._source = dataclasses.replace(self._source, first_step=header.step + 1)

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

    Args:
        source: Plans the steps.
        num_workers: Number of processes that make chunks; 0: the plans too are made in this process.

    Attributes:
        plans: Iterator of the loader that plans the steps.
        headers: Headers of the steps whose mark was given to a worker.
    """

    def __init__(self, source: PlanSource, num_workers: int) -> None:
        self._source = source
        self._num_workers = num_workers
        self.plans: Iterator[StepPlan | InputError] = iter(())
        self.headers: deque[StepHeader] = deque()

    def __iter__(self) -> Iterator[Task]:
        """Yields the mark and the chunks of each step."""
        self.plans = iter(process_loader(self._source, min(self._num_workers, 1)))
        for plan in self.plans:
            if isinstance(plan, InputError):
                yield plan
                return
            self.headers.append(plan.header)
            yield None
            yield from plan.chunks
