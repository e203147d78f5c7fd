"""A stand-in for a device, for clocks."""

from __future__ import annotations

import torch

from vlm2vec.training.watch.clock import StepClock

CPU = torch.device("cpu")


class Device:
    """A device whose stream takes a second for each piece of work, and counts who waits for it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.looks = 0

    def between(self, start: float, end: float) -> float:
        self.looks += 1
        return end - start

    def clock(self) -> StepClock:
        return StepClock(CPU, lambda: self.seconds, self.between)
