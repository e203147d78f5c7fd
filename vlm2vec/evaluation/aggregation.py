"""Aggregates datasets' scores: means over meta-tasks, in- and out-of-distribution datasets, and overall."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vlm2vec.evaluation.data.selection import DISTRIBUTIONS, TASKS, groups_of, listed
from vlm2vec.evaluation.metrics import METRICS, DatasetScore, interval_of_mean
from vlm2vec.mmeb import Benchmark

OVERALL = "overall"


def summarise(scores: Mapping[str, DatasetScore], benchmark: Benchmark | None) -> dict[str, Any]:
    """Summary of a run's scores, as in `scores.json` but without the model's identity.

    All means are unweighted over datasets, as the benchmark's are. Each mean records how many datasets it covers and
    how many the benchmark lists, so that a partial mean is not taken for the benchmark's.
    """
    datasets: dict[str, Any] = {}
    members: dict[str, dict[str, DatasetScore]] = {}
    for name, score in scores.items():
        meta_task, distribution = groups_of(name, benchmark)
        datasets[name] = {
            "meta_task": meta_task,
            "distribution": distribution,
            **asdict(score),
            "acc_interval": interval_of_mean({name: score}),
        }
        for group in (meta_task, distribution, OVERALL):
            if group is not None:
                members.setdefault(group, {})[name] = score
    means = {
        group: _mean(group, members[group], benchmark)
        for group in (*TASKS, *DISTRIBUTIONS, OVERALL)
        if group in members
    }
    return {
        "benchmark": benchmark.name if benchmark else None,
        "num_rows": sum(score.num_pred for score in scores.values()),
        "datasets": datasets,
        "meta_tasks": {group: mean for group, mean in means.items() if group in TASKS},
        **{group: mean for group, mean in means.items() if group not in TASKS},
    }


def _mean(group: str, scores: Mapping[str, DatasetScore], benchmark: Benchmark | None) -> dict[str, Any]:
    groups = [(*groups_of(name, benchmark), OVERALL) for name in (listed(benchmark) if benchmark else ())]
    return {
        **{
            figure: math.fsum(getattr(score, figure) for score in scores.values()) / len(scores)
            for figure in ("acc", "chance", *METRICS)
        },
        "acc_interval": interval_of_mean(scores),
        "num_datasets": len(scores),
        "num_datasets_of_benchmark": sum(group in names for names in groups),
    }
