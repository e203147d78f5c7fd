"""Samples that turn out unreadable during a run: all ranks agree on them, replace, report and limit them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vlm2vec.batches import TrainingBatches
from vlm2vec.messages.words import counted
from vlm2vec.ranks import gather_from_all, refuse_alike
from vlm2vec.training.watch.monitor import Monitor


class BadSamples:
    """All bad samples that the run has met; identical on every rank.

    A batch is a pure function of the order and this record, so the record is part of every checkpoint.

    Args:
        most: Most bad samples before the run ends (`--max_bad_samples`).
        record: Record of the run that is resumed, as the property `record` returns it.
    """

    def __init__(self, most: int, record: Iterable[Mapping[str, Any]] = ()) -> None:
        self._most = most
        self._reasons = {(each["subset"], each["position"]): each["reason"] for each in record}

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def places(self) -> frozenset[tuple[str, int]]:
        """Subset and position of each sample."""
        return frozenset(self._reasons)

    @property
    def record(self) -> list[dict[str, Any]]:
        """For a checkpoint: subset, position and reason of each sample, in the order in which they were met."""
        return [
            {"subset": subset, "position": position, "reason": reason}
            for (subset, position), reason in self._reasons.items()
        ]

    def replace(self, batches: TrainingBatches, monitor: Monitor, step: int) -> None:
        """Prepares the current step again without the samples that some rank could not read; all ranks call it.

        Args:
            batches: The source of the step.
            monitor: Receives each sample's place and what is wrong with it.
            step: Step number for the report, counted from 0.

        Raises:
            InputError: The run has met more bad samples than `most`.
            SystemExit: The same, on all ranks but the first, so that the list is printed once.
        """
        own = [(*place, reason) for place, reason in batches.damage.items()]
        found = gather_from_all(own, list[tuple[str, int, str]])
        # Sorted over all ranks, so that the record does not depend on which rank met a sample.
        new = {
            (subset, position): reason for subset, position, reason in sorted(each for rank in found for each in rank)
        }
        for reason in new.values():
            monitor.bad_sample(step, reason)
        self._reasons.update(new)
        if len(self) > self._most:
            listed = "; ".join(self._reasons.values())
            refuse_alike(
                f"{counted(len(self), 'unreadable sample')}, --max_bad_samples allows {self._most}: {listed}. "
                "python -m data_prep.verify lists all damage"
            )
        batches.replace(new.keys())
