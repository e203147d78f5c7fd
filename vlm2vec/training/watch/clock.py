"""Where a step's time goes: read when a line is written, without making the host wait for the device."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vlm2vec.contrastive.watch import AnyPart, Place, Watch
from vlm2vec.training.watch.parts import RunPart


class StepClock(Watch):
    """Adds up the time of parts, and names them in traces; a part inside another is taken out of it.

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
        self._part: AnyPart = RunPart.OTHER
        self._marks: list[tuple[Any, AnyPart]] = []
        self._seconds: defaultdict[AnyPart, float] = defaultdict(float)

    @contextmanager
    def part(self, part: AnyPart, place: Place | None = None) -> Iterator[None]:
        """All that runs inside belongs to `part`."""
        before = self._part
        self._enter(part)
        try:
            with super().part(part, place):
                yield
        finally:
            self._enter(before)

    def read(self) -> dict[AnyPart, float]:
        """Seconds of each part since the last call; waits for the device."""
        self._enter(self._part)
        self._add_up()
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds

    def _enter(self, part: AnyPart) -> None:
        self._marks.append((self._mark(), part))
        self._part = part
        if self._adds_at_once:
            self._add_up()

    def _add_up(self) -> None:
        for (start, part), (end, _) in zip(self._marks, self._marks[1:], strict=False):
            self._seconds[part] += self._between(start, end)
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
