"""Which rank is stuck: a judgement from what the ranks say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Ranks that end by bad input at the same time say so themselves: the others wait this many seconds before they leave.
SECONDS_TO_REPORT = 3.0
# Beside 75 (stopped by a signal): a rank does not take part any more. sysexits.h's EX_PROTOCOL.
EXIT_STUCK = 76
# The collectives of the other ranks mostly notice a rank that ended: they get this many seconds to say so.
GRACE_SECONDS = 10.0
_BEATS_OF_SILENCE = 3


@dataclass(frozen=True)
class Mark:
    """Where a rank's main thread is.

    Attributes:
        count: Marks made so far. All ranks make the same ones, so a rank with fewer is behind.
        step: The step that runs, from 1; 0 before the first.
        place: In words.
        limit: Time limit for this place in seconds.
    """

    count: int
    step: int
    place: str
    limit: float

    def __str__(self) -> str:
        return f"step {self.step}, {self.place}" if self.step else self.place


@dataclass(frozen=True)
class Word:
    """What a rank says of itself.

    Attributes:
        beat: Grows as long as the process runs, whatever its main thread does.
        mark: Where the main thread is.
        end: Why the rank has ended; empty if its run is over, None if it runs.
        is_bad_input: Whether it ended by bad input, which it has reported itself.
    """

    beat: int
    mark: Mark
    end: str | None = None
    is_bad_input: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Word:
        """The reverse of `as_dict`."""
        return cls(values["beat"], Mark(**values["mark"]), values["end"], values["is_bad_input"])


@dataclass(frozen=True)
class Verdict:
    """Why a rank gives up.

    Attributes:
        text: One line that names the ranks.
        suspects: Their numbers.
    """

    text: str
    suspects: tuple[int, ...]


class Witness:
    """What one rank knows of all. It counts the seconds in which it ran itself: a job may be stopped as a whole.

    Args:
        names: Rank, host and process of every rank.
        own: The number of the rank that judges.
        seconds_a_beat: How often a rank gives a sign.
    """

    def __init__(self, names: Sequence[str], own: int, seconds_a_beat: float) -> None:
        self.names = names
        self.others = tuple(rank for rank in range(len(names)) if rank != own)
        self._seconds_a_beat = seconds_a_beat
        self._words: list[Word] = []
        self._silent = [0.0] * len(names)
        self._still = 0.0  # since the last of the ranks moved
        self._refused = 0.0  # since a rank ended by bad input

    def hear(self, words: Sequence[Word], seconds: float) -> None:
        """The ranks' words, `seconds` after those before."""
        if self._words:
            for rank, (before, word) in enumerate(zip(self._words, words, strict=True)):
                self._silent[rank] = self._silent[rank] + seconds if word.beat == before.beat else 0.0
            moved = min(word.mark.count for word in words) > min(word.mark.count for word in self._words)
            self._still = 0.0 if moved else self._still + seconds
        if any(words[rank].is_bad_input for rank in self.others):
            self._refused += seconds
        self._words = list(words)

    def judge(self, silent_limit: float) -> Verdict | None:
        """Whether the job can continue.

        The rank that is behind is what the others wait for; whether that has lasted too long is up to its place.

        Args:
            silent_limit: How long a process may be silent, in seconds.

        Returns:
            None as long as all is well.
        """
        if not self._words:
            return None
        failed = self.failed()
        if failed and self._still >= GRACE_SECONDS:
            return failed
        running = [rank for rank, word in enumerate(self._words) if word.end is None]
        fewest = min((self._words[rank].mark.count for rank in running), default=0)
        behind = tuple(rank for rank in running if self._words[rank].mark.count == fewest)
        if not behind or self._still < min(self._words[rank].mark.limit for rank in behind):
            return self.silent(silent_limit)
        return self.silent(_BEATS_OF_SILENCE * self._seconds_a_beat) or self._not_moving(behind)

    def is_refused(self) -> bool:
        """Whether another rank ended by bad input: there is nothing to wait for, and nothing to add."""
        return self._refused > SECONDS_TO_REPORT

    def silent(self, seconds: float) -> Verdict | None:
        """Ranks that are stopped, dead, or not to be reached: not heard of for so long without having ended.

        If nobody is heard of, it is the first rank, whose process passes the words on.
        """
        silent = [rank for rank in self.others if self._words[rank].end is None and self._silent[rank] >= seconds]
        if not silent:
            return None
        suspects = (0,) if silent[0] == 0 and len(silent) == len(self.others) else tuple(silent)
        texts = [
            f"{self.names[rank]} has been silent for {self._silent[rank]:.0f} s, last heard of in "
            f"{self._words[rank].mark}"
            for rank in suspects
        ]
        return Verdict(_some(texts), suspects)

    def failed(self) -> Verdict | None:
        """Ranks that ended with an error and could still say so."""
        failed = tuple(rank for rank in self.others if self._words[rank].end)
        texts = [
            f"{self.names[rank]} has ended in {self._words[rank].mark}: {self._words[rank].end}" for rank in failed
        ]
        return Verdict(_some(texts), failed) if failed else None

    def _not_moving(self, behind: tuple[int, ...]) -> Verdict:
        names, mark = _some([self.names[rank] for rank in behind]), self._words[behind[0]].mark
        if len(behind) < len(self.names):
            return Verdict(f"{names} has not moved for {self._still:.0f} s, in {mark}", behind)
        why = "The network between them, or a chunk that takes longer than --step_timeout"
        return Verdict(f"no rank has moved for {self._still:.0f} s: {names} in {mark}. {why}", behind)


def _some(texts: Sequence[str], most: int = 4) -> str:
    rest = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return "; ".join([*texts[:most], *rest])
