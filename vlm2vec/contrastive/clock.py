"""Where a step's time goes: named parts, read when a line is written, without making the host wait for the device."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch.profiler import record_function

# The parts of a step. What is outside of all of them is `OTHER`.
DATA_WAIT, PASS_1, LOSS, PASS_2, OPTIMIZER, OTHER = "data_wait", "pass_1", "loss", "pass_2", "optimizer", "other"
# What this code and the gradient's one reduction send, and the wait for slower ranks in it.
COLLECTIVES = "collectives"
CHECKPOINT = "checkpoint"
# All that a step's time is made of.
PARTS = (DATA_WAIT, PASS_1, LOSS, PASS_2, OPTIMIZER, COLLECTIVES, CHECKPOINT, OTHER)
# No training: left out of a step's time.
EVALUATION = "evaluation"

Result = TypeVar("Result")


class Regions:
    """Names the parts of a step for torch.profiler's traces and measures nothing."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """All that runs inside belongs to `name`."""
        with record_function(f"vlm2vec/{name}"):
            yield

    def each(self, name: str, items: Iterable[Result]) -> Iterator[Result]:
        """The items; getting one belongs to `name`."""
        iterator, end = iter(items), object()
        while True:
            with self.part(name):
                item: Any = next(iterator, end)
            if item is end:
                return
            yield item

    @contextmanager
    def leaving(self, name: str, context: AbstractContextManager[Result]) -> Iterator[Result]:
        """A context; what it does when it is left without an exception belongs to `name`."""
        with ExitStack() as stack:
            yield stack.enter_context(context)
            with self.part(name):
                stack.close()


class StepClock(Regions):
    """Adds up the time of named parts; a part inside another one is taken out of it, so that the sum is the whole.

    It must be read now and then: on an accelerator its marks are kept until then.

    On an accelerator the marks between parts are events in its stream, read only by `read`: a part is the time in which
    the device ran it or stood still for it, so a wait for data that the device had work for does not count. On a CPU
    they are readings of the host's clock.

    Args:
        device: Of the step.
        mark: Makes a mark now; for tests.
        seconds_between: The time between two marks; waits for the later one.
    """

    def __init__(
        self,
        device: torch.device,
        mark: Callable[[], Any] | None = None,
        seconds_between: Callable[[Any, Any], float] | None = None,
    ) -> None:
        on_host = device.type == "cpu"
        self._mark = mark or (time.perf_counter if on_host else _event_of(device))
        self._between = seconds_between or (_difference if on_host else _between_events)
        # On the host a mark is a number and added at once, or a run that nobody reads would collect them.
        self._adds_at_once = on_host and mark is None
        self._part = OTHER
        self._marks: list[tuple[Any, str]] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """All that runs inside belongs to `name`."""
        before = self._part
        self._enter(name)
        try:
            with super().part(name):
                yield
        finally:
            self._enter(before)

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last call; waits for the device."""
        self._enter(self._part)
        self._add_up()
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds

    def _enter(self, name: str) -> None:
        self._marks.append((self._mark(), name))
        self._part = name
        if self._adds_at_once:
            self._add_up()

    def _add_up(self) -> None:
        for (start, name), (end, _) in zip(self._marks, self._marks[1:], strict=False):
            self._seconds[name] += self._between(start, end)
        del self._marks[:-1]


def _difference(start: float, end: float) -> float:
    return end - start


def _event_of(device: torch.device) -> Callable[[], Any]:
    module = torch.get_device_module(device)

    def mark() -> Any:
        event = module.Event(enable_timing=True)
        event.record()
        return event

    return mark


def _between_events(start: Any, end: Any) -> float:
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000
