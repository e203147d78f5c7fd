"""What a run measures: sums on the device, brought to the host only when a line is written."""

from __future__ import annotations

import resource
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from vlm2vec.batches import StepHeader
from vlm2vec.contrastive import StepOutput
from vlm2vec.contrastive.watch import AnyPart, Part
from vlm2vec.ranks import world_size
from vlm2vec.training.settings import LossSettings, MinedSettings
from vlm2vec.training.watch.clock import StepClock
from vlm2vec.training.watch.mfu import ModelFlops
from vlm2vec.training.watch.parts import STEP_PARTS, RunPart

# New fields come last: a window of an older checkpoint lacks them.
_FIELDS = (
    *("loss", "hits", "rows", "positive_similarity", "hardest_negative_similarity", "masked"),
    *("mean_negative_similarity", "masked_similar", "divergence"),
)
_SUBSET_FIELDS = ("hit@1", "rows", "loss", "hardest_negative", "mean_negative")
_COUNTS = ("tokens", "squared_tokens", "vision_units", "items", "squared_vision_units")
# Cosines from -1 to 1, counted in steps of 0.025.
SIMILARITY_BINS = 80
# Metrics of runs that leave out likely matches, or follow a teacher's scores.
MASKED_SIMILAR, DIVERGENCE = "masked_similar_pairs", "teacher_divergence"
POSITIVE, HARDEST_NEGATIVE = "similarity_histogram/positive", "similarity_histogram/hardest_negative"


def optional_metrics(loss: LossSettings, mined: MinedSettings | None) -> list[str]:
    """The metrics that only runs with some options have."""
    leaves_out = loss.negatives.finds_false_negatives or (mined is not None and mined.false_negatives)
    return [MASKED_SIMILAR] * leaves_out + [DIVERGENCE] * (loss.distillation is not None)


@dataclass(frozen=True)
class Figures:
    """A window's figures over all ranks.

    Attributes:
        values: By field name.
        histograms: Rows by similarity, `SIMILARITY_BINS` counts from -1 to 1 each, by field name.
    """

    values: dict[str, float]
    histograms: dict[str, list[int]]


class StepMeter:
    """Collects steps; `report` reduces them over the ranks and starts a new window.

    Args:
        subsets: Names, in the order of `StepHeader.row_subsets`.
        device: Where the sums live.
        clock: Of the steps; nobody else reads it.
        model_flops: What MFU is counted by; None: no MFU.
        optional: Which of `MASKED_SIMILAR` and `DIVERGENCE` are reported.
    """

    def __init__(
        self,
        subsets: Sequence[str],
        device: torch.device,
        clock: StepClock,
        model_flops: ModelFlops | None = None,
        optional: Collection[str] = (),
    ) -> None:
        self._subsets = tuple(subsets)
        self._device = device
        self._clock = clock
        self._model_flops = model_flops
        self._optional = optional
        self._reset()

    def _reset(self) -> None:
        # float64: tokens of a long window exceed float32's exact integers.
        self._sums = torch.zeros(len(_FIELDS), dtype=torch.float64, device=self._device)
        shape = (len(_SUBSET_FIELDS), len(self._subsets))
        self._subset_rows = torch.zeros(shape, dtype=torch.float64, device=self._device)
        self._similarities = torch.zeros((2, SIMILARITY_BINS), dtype=torch.float64, device=self._device)
        self._counts = [0] * len(_COUNTS)
        self._steps = self._timed_steps = 0
        self._seconds_before = 0.0
        self._seconds: defaultdict[AnyPart, float] = defaultdict(float)

    def state_dict(self) -> dict[str, Any]:
        """This rank's part of the window so far; waits for the device."""
        return {
            "sums": self._sums.cpu(),
            "subset_rows": self._subset_rows.cpu(),
            "similarities": self._similarities.cpu(),
            "counts": [self._steps, *self._counts],
            "seconds": self._elapsed(),
        }

    def load_state_dict(self, *parts: Mapping[str, Any]) -> None:
        """Resumes a window from this rank's part of it, or from the parts of ranks that no longer exist."""
        self._reset()
        for part in parts:
            self._sums[: len(part["sums"])] += part["sums"].to(self._device)
            self._subset_rows[: len(part["subset_rows"])] += part["subset_rows"].to(self._device)
            self._similarities += part["similarities"].to(self._device)
            self._steps, *counts = part["counts"]
            self._counts = [sum(each) for each in zip_longest(self._counts, counts, fillvalue=0)]
            self._seconds_before = part["seconds"]

    def add(self, header: StepHeader, output: StepOutput) -> None:
        """Adds one step of this rank, without waiting for the device."""
        rows = output.statistics
        hits, positive = rows.hit.double(), rows.positive_similarity.double()
        # A row without any negative (all targets equal) has no hardest one: no sum, and no place in the histogram.
        has_negative = rows.hardest_negative_similarity.isfinite().double()
        hardest = rows.hardest_negative_similarity.double().nan_to_num(neginf=0.0)
        mean = rows.mean_negative_similarity.double()
        ones = torch.ones_like(hits)
        sums = [hits.sum(), ones.sum(), positive.sum(), hardest.sum(), rows.masked.double().sum(), mean.sum()]
        sums += [rows.masked_similar.double().sum(), rows.divergence.double().sum()]
        self._sums += torch.stack([output.loss.double(), *sums])
        subsets = header.row_subsets.to(self._device, non_blocking=True)
        of_rows = (hits, ones, rows.loss.double(), hardest, mean)
        for total, values in zip(self._subset_rows, of_rows, strict=True):
            total.index_add_(0, subsets, values)
        for counts, values, weights in zip(self._similarities, (positive, hardest), (ones, has_negative), strict=True):
            counts.index_add_(0, _bins(values), weights)
        of_items = (header.num_tokens, header.squared_tokens, header.vision_units, header.num_items)
        of_step = (*of_items, header.squared_vision_units)
        self._counts = [before + more for before, more in zip(self._counts, of_step, strict=True)]
        self._steps += 1
        self._timed_steps += 1

    def _elapsed(self) -> float:
        """The window's seconds so far, evaluation left out; waits for the device."""
        for part, seconds in self._clock.read().items():
            if part is not RunPart.EVALUATION:
                self._seconds[part] += seconds
        return self._seconds_before + sum(self._seconds.values())

    def report(self) -> Figures:
        """The window's figures over all ranks (a collective); then starts a new window.

        Returns:
            Means a row, rates a second, `subset_loss/<subset>`, `subset_hit@1/<subset>` and how similar the negatives
            are (`subset_mean_negative/<subset>`, `subset_hardest_negative/<subset>`) for each subset seen, and
            `time_ms/<part>`: milliseconds of a step since the run was started or resumed, which add up to all of it.
        """
        self._elapsed()
        in_parts = [self._seconds[part] / max(self._timed_steps, 1) for part in STEP_PARTS]
        known = self._sums.new_tensor([*self._counts, *in_parts])
        whole = [known, self._sums, self._subset_rows.flatten(), self._similarities.flatten()]
        sums = torch.cat(whole)
        most = self._sums.new_tensor([_peak_memory(self._device), self._seconds_before])
        ranks = world_size()
        if ranks > 1:
            dist.all_reduce(sums)
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
        known, fields, subset_rows, similarities = torch.split(sums.cpu(), [len(each) for each in whole])
        numbers = known.tolist()
        counts = dict(zip(_COUNTS, numbers[: len(_COUNTS)], strict=True))
        of_parts = {part: each / ranks for part, each in zip(STEP_PARTS, numbers[len(_COUNTS) :], strict=True)}
        total = dict(zip(_FIELDS, fields.tolist(), strict=True))
        peak_memory, seconds_before = most.tolist()
        of_step = sum(of_parts.values())
        seconds = seconds_before + of_step * self._timed_steps
        report = self._rates(total, counts, seconds)
        report["peak_memory_gib"] = peak_memory / 2**30
        if self._model_flops is not None:
            names = ("tokens", "squared_tokens", "vision_units", "squared_vision_units")
            flops = self._model_flops.of(*(counts[name] for name in names))
            report["mfu"] = flops / (seconds * ranks * self._model_flops.peak_flops)
        report |= {f"time_ms/{part.value}": 1000 * seconds for part, seconds in of_parts.items()}
        for part in (Part.DATA_WAIT, Part.COLLECTIVES):
            report[f"{part.value}_share"] = of_parts[part] / of_step if of_step else 0.0
        for name, *values in zip(self._subsets, *subset_rows.view(len(_SUBSET_FIELDS), -1).tolist(), strict=True):
            of_subset = dict(zip(_SUBSET_FIELDS, values, strict=True))
            if rows := of_subset.pop("rows"):
                report |= {f"subset_{field}/{name}": value / rows for field, value in of_subset.items()}
        positive, hardest = similarities.view(2, -1).long().tolist()
        self._reset()
        return Figures(report, {POSITIVE: positive, HARDEST_NEGATIVE: hardest})

    def _rates(self, total: Mapping[str, float], counts: Mapping[str, float], seconds: float) -> dict[str, float]:
        rows, steps = max(total["rows"], 1.0), max(self._steps, 1)
        optional = {MASKED_SIMILAR: total["masked_similar"] / steps, DIVERGENCE: total["divergence"] / rows}
        return {
            "loss": total["loss"] / steps,
            "hit@1": total["hits"] / rows,
            "similarity/positive": total["positive_similarity"] / rows,
            "similarity/hardest_negative": total["hardest_negative_similarity"] / rows,
            "similarity/mean_negative": total["mean_negative_similarity"] / rows,
            "masked_pairs": total["masked"] / steps,
            **{name: value for name, value in optional.items() if name in self._optional},
            "pairs_per_second": total["rows"] / seconds,
            "tokens_per_second": counts["tokens"] / seconds,
            "items_per_second": counts["items"] / seconds,
            "milliseconds_per_step": 1000 * seconds / steps,
        }


def histogram_edges(num_bins: int) -> npt.NDArray[np.float64]:
    """The limits of a histogram's bins, one more than bins: cosines in equal steps from -1 to 1."""
    return np.linspace(-1, 1, num_bins + 1)


def _bins(similarities: Tensor) -> Tensor:
    return ((similarities + 1) / 2 * SIMILARITY_BINS).long().clamp_(0, SIMILARITY_BINS - 1)


def _peak_memory(device: torch.device) -> float:
    """The most bytes in tensors on an accelerator so far; on a CPU the process's resident memory."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return float(torch.get_device_module(device).max_memory_allocated(device))
