"""The one watch of a run: heartbeat, clock and the regions of traces together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch.distributed as dist

from vlm2vec.batches import TrainingBatch
from vlm2vec.contrastive.watch import AnyPart, Part, Place, Watch
from vlm2vec.messages.progress import still_running
from vlm2vec.training.watch.clock import StepClock
from vlm2vec.training.watch.heartbeat import Heartbeat
from vlm2vec.training.watch.parts import UNTIMED, RunPart

_WAITING = Place(Part.DATA_WAIT, "waiting for data", is_pause=True)
_BEGINNING = Place(RunPart.OTHER, "beginning")


class RunWatch(Watch):
    """Marks places on the heartbeat, measures parts by the clock and names them in traces.

    Args:
        heartbeat: Tells the other ranks of the places.
        clock: Measures and names the parts.

    Attributes:
        clock: For what reads it.
        place: The last one that was marked; it stays when an error ends the part.
    """

    def __init__(self, heartbeat: Heartbeat, clock: StepClock) -> None:
        self._heartbeat = heartbeat
        self.clock = clock
        self.place = Place(RunPart.START, "starting", is_pause=True)
        self._stage = ExitStack()  # what tells of a stage of the start that takes long

    @contextmanager
    def part(self, part: AnyPart, place: Place | None = None) -> Iterator[None]:
        """All that runs inside belongs to `part`; with `place`, it begins there."""
        if place is not None:
            self.at(place)
        if part in UNTIMED:
            yield
            return
        with self.clock.part(part):
            yield

    def at(self, place: Place) -> None:
        """The run has come to a place, within the part that runs."""
        self.place = place
        self._heartbeat.mark(place.words, place.is_pause)

    @contextmanager
    def pause(self, part: RunPart) -> Iterator[None]:
        """A part that may take long, such as a checkpoint."""
        # Evaluations have bars of their own.
        telling = still_running("writing a checkpoint") if part is RunPart.CHECKPOINT else nullcontext()
        with self.part(part, Place(part, part.value, is_pause=True)), telling:
            yield
        self.at(Place(RunPart.OTHER, f"{part.value} done"))

    def starting(self, what: str) -> None:
        """Says on the first rank what the start is doing: each of its stages may take long."""
        self.at(Place(RunPart.START, f"starting: {what}", is_pause=True))
        self.close()
        if dist.get_rank() == 0:
            print(f"starting: {what}", flush=True)
        self._stage.enter_context(still_running(what))

    def close(self) -> None:
        """The start is over, or the run."""
        self._stage.close()

    def steps(self, batches: Iterable[TrainingBatch]) -> Iterator[TrainingBatch]:
        """The batches, each a step; getting one is a wait for data."""
        source = iter(batches)
        self.close()
        while True:
            with self.part(Part.DATA_WAIT, _WAITING):
                batch = next(source, None)
            if batch is None:
                return
            self._heartbeat.begin_step(batch.header.step + 1)
            self.at(_BEGINNING)
            yield batch
            self._heartbeat.end_step()

    def where(self) -> str:
        """Step and place, in words."""
        return self._heartbeat.where()
