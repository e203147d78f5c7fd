"""What a run measures: sums on the device, brought to the host only when a line is written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from vlm2vec.batches import StepHeader
from vlm2vec.contrastive import StepOutput

_FIELDS = ("loss", "hits", "rows", "positive_similarity", "hardest_negative_similarity", "masked")


class StepMeter:
    """Collects steps; `report` reduces them over the ranks and starts a new window.

    Args:
        subsets: Names, in the order of `StepHeader.row_subsets`.
        device: Where the sums live.
    """

    def __init__(self, subsets: Sequence[str], device: torch.device) -> None:
        self._subsets = tuple(subsets)
        self._device = device
        self._seconds_waiting = 0.0
        self._reset()

    def _reset(self) -> None:
        # float64: tokens of a long window exceed float32's exact integers.
        self._sums = torch.zeros(len(_FIELDS), dtype=torch.float64, device=self._device)
        self._subset_rows = torch.zeros((2, len(self._subsets)), dtype=torch.float64, device=self._device)
        self._steps = self._tokens = self._items = 0
        self._start = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """This rank's part of the window so far; waits for the device."""
        return {
            "sums": self._sums.cpu(),
            "subset_rows": self._subset_rows.cpu(),
            "counts": [self._steps, self._tokens, self._items],
            "seconds": time.perf_counter() - self._start,
        }

    def load_state_dict(self, *parts: Mapping[str, Any]) -> None:
        """Goes on with a window: this rank's part of it, or the parts of ranks that are no more."""
        self._reset()
        for part in parts:
            self._sums += part["sums"].to(self._device)
            self._subset_rows += part["subset_rows"].to(self._device)
            self._steps, tokens, items = part["counts"]
            self._tokens += tokens
            self._items += items
            self._start = time.perf_counter() - part["seconds"]

    def add(self, header: StepHeader, output: StepOutput) -> None:
        """Adds one step of this rank, without waiting for the device."""
        rows = output.statistics
        hits = rows.hit.double()
        # A row without any negative (all targets equal) has no hardest one.
        hardest = rows.hardest_negative_similarity.double().nan_to_num(neginf=0.0)
        self._sums += torch.stack(
            [
                output.loss.double(),
                hits.sum(),
                torch.ones_like(hits).sum(),
                rows.positive_similarity.double().sum(),
                hardest.sum(),
                rows.masked.double().sum(),
            ]
        )
        subsets = header.row_subsets.to(self._device, non_blocking=True)
        self._subset_rows[0].index_add_(0, subsets, hits)
        self._subset_rows[1].index_add_(0, subsets, torch.ones_like(hits))
        self._steps += 1
        self._tokens += header.num_tokens
        self._items += header.num_items

    def leave_out(self, seconds: float) -> None:
        """Takes time that is no training, such as an evaluation's, out of the window's rates."""
        self._start += seconds

    def report(self, seconds_waiting: float) -> dict[str, float]:
        """The window's figures over all ranks (a collective); then starts a new window.

        Args:
            seconds_waiting: How long this rank has waited for data since the run began.

        Returns:
            Means a row, rates a second of wall time, and `subset_hit@1/<subset>` for each subset seen.
        """
        known = self._sums.new_tensor([self._tokens, self._items])
        sums = torch.cat([known, self._sums, self._subset_rows.flatten()])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        tokens, items, *figures = sums.tolist()
        total = dict(zip(_FIELDS, figures[: len(_FIELDS)], strict=True))
        seconds = time.perf_counter() - self._start
        rows = max(total["rows"], 1.0)
        report = {
            "loss": total["loss"] / max(self._steps, 1),
            "hit@1": total["hits"] / rows,
            "similarity/positive": total["positive_similarity"] / rows,
            "similarity/hardest_negative": total["hardest_negative_similarity"] / rows,
            "masked_pairs": total["masked"] / max(self._steps, 1),
            "pairs_per_second": total["rows"] / seconds,
            "tokens_per_second": tokens / seconds,
            "items_per_second": items / seconds,
            "milliseconds_per_step": 1000 * seconds / max(self._steps, 1),
            "data_wait_share": (seconds_waiting - self._seconds_waiting) / seconds,
        }
        subset_hits, subset_rows = figures[len(_FIELDS) :][: len(self._subsets)], figures[-len(self._subsets) :]
        for name, hit, count in zip(self._subsets, subset_hits, subset_rows, strict=True):
            if count:
                report[f"subset_hit@1/{name}"] = hit / count
        self._seconds_waiting = seconds_waiting
        self._reset()
        return report
