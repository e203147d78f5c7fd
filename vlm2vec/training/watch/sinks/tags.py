"""Under which group a tracker shows a metric: trackers make a section of all names before the first slash."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vlm2vec.training.watch.metrics import Figures, histogram_edges

# Metrics of one row or rank: log.jsonl's name, a tracker's.
_TAGS = {
    "loss": "loss/train",
    "hit@1": "loss/hit@1",
    "teacher_divergence": "loss/teacher_divergence",
    "temperature": "loss/temperature",
    "masked_pairs": "loss/masked_pairs",
    "masked_similar_pairs": "loss/masked_similar_pairs",
    "learning_rate": "optimizer/learning_rate",
    "gradient_norm": "optimizer/gradient_norm",
    "skipped_steps": "optimizer/skipped_steps",
    "pairs_per_second": "speed/pairs_per_second",
    "tokens_per_second": "speed/tokens_per_second",
    "items_per_second": "speed/items_per_second",
    "mfu": "speed/mfu",
    "milliseconds_per_step": "time/step_ms",
    "data_wait_share": "time/data_wait_share",
    "collectives_share": "time/collectives_share",
    "peak_memory_gib": "memory/peak_gib",
    "epoch": "data/epoch",
    "bad_samples": "data/bad_samples",
}
# Those of several parts, groups or subsets: what log.jsonl's name begins with, what a tracker's begins and ends with.
_FAMILIES = {
    "temperature/": ("loss/temperature/", ""),
    "similarity/": ("similarity/", ""),
    "similarity_histogram/": ("similarity/", "_histogram"),
    "time_ms/": ("time/", "_ms"),
    "subset_loss/": ("subset/loss/", ""),
    "subset_hit@1/": ("subset/hit@1/", ""),
    "subset_mean_negative/": ("subset/mean_negative/", ""),
    "subset_hardest_negative/": ("subset/hardest_negative/", ""),
    "eval/": ("eval/", ""),
    "eval_dataset/": ("eval_dataset/", ""),
}
# The sections, in the order of the table in docs/monitoring.md.
GROUPS = (
    *("loss", "similarity", "optimizer", "speed", "time", "memory", "data", "subset", "eval", "eval_dataset"),
    "other",
)


def tag_of(name: str) -> str:
    """A tracker's name of a metric.

    Args:
        name: As log.jsonl has it.
    """
    if name in _TAGS:
        return _TAGS[name]
    beginning, slash, rest = name.partition("/")
    if beginning + slash in _FAMILIES:
        before, after = _FAMILIES[beginning + slash]
        return f"{before}{rest}{after}"
    return f"other/{name}"


def tagged(values: Mapping[str, float]) -> dict[str, Any]:
    """Metrics under a tracker's names."""
    return {tag_of(name): value for name, value in values.items()}


def tagged_figures(figures: Figures, histogram: Callable[..., Any]) -> dict[str, Any]:
    """An interval's metrics and histograms under a tracker's names.

    Args:
        figures: The interval.
        histogram: The tracker's class, which takes counts and edges as numpy returns them.
    """
    made = {
        tag_of(name): histogram(np_histogram=(counts, histogram_edges(len(counts))))
        for name, counts in figures.histograms.items()
    }
    return {**tagged(figures.values), **made}
