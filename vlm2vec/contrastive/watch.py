"""Watching a step: which of its parts runs, and at which place of it; usable without a training loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from torch.profiler import record_function

Result = TypeVar("Result")


class AnyPart(Enum):
    """What time is spent on; its members are a step's (`Part`), and those of whatever loop runs the steps."""


class Part(AnyPart):
    """The parts of a cached step."""

    DATA_WAIT = "data_wait"
    PASS_1 = "pass_1"
    LOSS = "loss"
    PASS_2 = "pass_2"
    # What this code and the gradient's one reduction send, and the wait for slower ranks in it.
    COLLECTIVES = "collectives"


@dataclass(frozen=True)
class Place:
    """A point that the ranks pass in the same order.

    Attributes:
        part: The part whose work is done here; at a wait for a chunk's data, the part that needs the chunk.
        words: The place for people; nothing is decided by it.
        is_kept: Whether it is about a chunk whose graph is kept from pass 1.
        is_pause: Whether the place may take long, such as a wait for data.
    """

    part: AnyPart
    words: str
    is_kept: bool = False
    is_pause: bool = False


class Watch:
    """Follows what the thread that runs steps is doing. This one names the parts in torch.profiler's traces only.

    A subclass may measure the parts and note the places; it must not make the host wait for the device.
    """

    @contextmanager
    def part(self, part: AnyPart, place: Place | None = None) -> Iterator[None]:
        """All that runs inside belongs to `part`; with `place`, it begins there."""
        if place is not None:
            self.at(place)
        with record_function(f"vlm2vec/{part.value}"):
            yield

    def at(self, place: Place) -> None:
        """The step has come to a place, within the part that runs."""

    @contextmanager
    def leaving(self, part: AnyPart, place: Place, context: AbstractContextManager[Result]) -> Iterator[Result]:
        """A context; what it does when it is left without an exception belongs to `part` and begins at `place`."""
        with ExitStack() as stack:
            yield stack.enter_context(context)
            with self.part(part, place):
                stack.close()
