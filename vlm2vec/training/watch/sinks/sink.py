"""The interface of everything that takes what a run reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm2vec.training.watch.first_pairs import ShownPair
from vlm2vec.training.watch.metrics import Figures

Comparable = bool | int | float | str


@dataclass(frozen=True)
class RunCard:
    """What a run is.

    Attributes:
        facts: What a reader asks first, by name, in reading order.
        flags: All flags in force, by name; those that are not given and have no default are left out.
        changed: Those that differ from their defaults.
        comparable: What two runs are compared by: flags that are no paths, ranks and ZeRO stage.
    """

    facts: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    changed: Mapping[str, Any] = field(default_factory=dict)
    comparable: Mapping[str, Comparable] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """An evaluation's Precision@1, from 0 to 1.

    Attributes:
        means: By group of datasets: the meta-tasks, then IND, OOD and overall, as far as there are any.
        datasets: By dataset.
        warnings: What a reader of the scores must know.
    """

    means: Mapping[str, float]
    datasets: Mapping[str, float]
    warnings: Sequence[str] = ()

    @property
    def values(self) -> dict[str, float]:
        """All of them by the names that log.jsonl has."""
        return {
            **{f"eval/{name}": score for name, score in self.means.items()},
            **{f"eval_dataset/{name}": score for name, score in self.datasets.items()},
        }


class Sink:
    """Takes what a run reports, on its first rank. This one keeps none of it.

    Attributes:
        is_optional: Whether a run continues without it when it fails.
        hint: How to look at what it has taken, for the end of a run.
    """

    is_optional = False
    hint = ""

    def begin(self, card: RunCard) -> None:
        """What is about to run, once per start."""

    def advance(self) -> None:
        """A step is done."""

    def pairs(self, pairs: Sequence[ShownPair]) -> None:
        """A few pairs of the batch that comes first."""

    def figures(self, step: int, figures: Figures) -> None:
        """The metrics of an interval that ends after `step` steps."""

    def scores(self, step: int, scores: Scores) -> None:
        """An evaluation after `step` steps."""

    def bad_sample(self, step: int, reason: str) -> None:
        """A sample of step `step`, counted from 0, could not be read and was replaced."""

    def message(self, text: str) -> None:
        """A line for the reader of the log."""

    def done(self) -> None:
        """All steps of the run are done."""

    def close(self) -> None:
        """Writes what is left and closes."""
