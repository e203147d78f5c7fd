"""Observer of a step: its current part and place; usable without a training loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from torch.profiler import record_function

Result = TypeVar("Result")


class AnyPart(Enum):
    """Base of what time is spent on: the parts of a step (`Part`), and those of the loop that runs steps."""


class Part(AnyPart):
    """The parts of a cached step."""

    DATA_WAIT = "data_wait"
    PASS_1 = "pass_1"
    LOSS = "loss"
    PASS_2 = "pass_2"
    # Collectives of this package and the gradient reduction, including the wait for slower ranks.
    COLLECTIVES = "collectives"


@dataclass(frozen=True)
class Place:
    """A point that the ranks pass in the same order.

    Attributes:
        part: The part that runs here; for a wait for a chunk's data, the part that needs the chunk.
        words: Description for readers; no code depends on it.
        is_kept: Whether it concerns a chunk whose graph is kept from pass 1.
        is_pause: Whether it may take long, such as a wait for data.
    """

    part: AnyPart
    words: str
    is_kept: bool = False
    is_pause: bool = False


class Watch:
    """Follows the thread that runs steps. This base class only names the parts in torch.profiler's traces.

    A subclass may measure parts and record places; it must not make the host wait for the device.
    """

    @contextmanager
    def part(self, part: AnyPart, place: Place | None = None) -> Iterator[None]:
        """Context whose content belongs to `part`; with `place`, it begins there."""
        if place is not None:
            self.at(place)
        with record_function(f"vlm2vec/{part.value}"):
            yield

    def at(self, place: Place) -> None:
        """Records that the step has reached a place within the current part."""

    @contextmanager
    def leaving(self, part: AnyPart, place: Place, context: AbstractContextManager[Result]) -> Iterator[Result]:
        """Wraps a context; its exit without an exception belongs to `part` and begins at `place`."""
        with ExitStack() as stack:
            yield stack.enter_context(context)
            with self.part(part, place):
                stack.close()
