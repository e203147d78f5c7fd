"""Samples that turn out unreadable while a run goes on: agreed upon, replaced, reported, limited."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vlm2vec.batches import TrainingBatches
from vlm2vec.ranks import gather_from_all, refuse_alike
from vlm2vec.training.watch.monitor import Monitor


class BadSamples:
    """All bad samples that the run has met, the same on every rank.

    A batch is a pure function of the order and of this record, so the record is part of every checkpoint.

    Args:
        most: More of them end the run (`--max_bad_samples`).
        record: Of the run that goes on here, as `record` gives it.
    """

    def __init__(self, most: int, record: Iterable[Mapping[str, Any]] = ()) -> None:
        self._most = most
        self._reasons = {(each["subset"], each["position"]): each["reason"] for each in record}

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def places(self) -> frozenset[tuple[str, int]]:
        """Subset and position of each."""
        return frozenset(self._reasons)

    @property
    def record(self) -> list[dict[str, Any]]:
        """For a checkpoint: subset, position and reason of each, in the order in which they were met."""
        return [
            {"subset": subset, "position": position, "reason": reason}
            for (subset, position), reason in self._reasons.items()
        ]

    def replace(self, batches: TrainingBatches, monitor: Monitor, step: int) -> None:
        """Has the current step run again without the samples that some rank could not read; all ranks call it.

        Args:
            batches: Where the step came from.
            monitor: Is told each sample's place and what is wrong with it.
            step: Counted from 0, for the report.

        Raises:
            InputError: The run has met more bad samples than it may, or a rank found none it could name.
            SystemExit: The same, on all ranks but the first, so that the list is printed once.
        """
        own = [(*place, reason) for place, reason in batches.damage.items()]
        found = gather_from_all(own, list[tuple[str, int, str]])
        # Sorted over all ranks: which of them met a sample must not show.
        new = {
            (subset, position): reason for subset, position, reason in sorted(each for rank in found for each in rank)
        }
        for reason in new.values():
            monitor.bad_sample(step, reason)
        self._reasons.update(new)
        if len(self) > self._most:
            listed = "; ".join(self._reasons.values())
            refuse_alike(
                f"{len(self)} unreadable sample(s), --max_bad_samples allows {self._most}: {listed}. "
                "python -m data_prep.verify lists all damage"
            )
        batches.replace(new.keys())
