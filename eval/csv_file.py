"""Writes `report.csv`: every number of a report, one per line, for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from eval.retrieval_table import RetrievalRun
from eval.table import Run
from vlm2vec.evaluation.aggregation import OVERALL
from vlm2vec.evaluation.data.selection import DISTRIBUTIONS
from vlm2vec.evaluation.metrics import METRICS

HEADINGS = ("run", "kind", "name", "group", "metric", "value", "low", "high", "queries")
_ACC = "precision@1"
Line = tuple[object, ...]


def to_csv(runs: Sequence[Run], retrievals: Sequence[RetrievalRun]) -> str:
    """The file's text. Values are shares from 0 to 1; `low` and `high` are their 95 % intervals ("" = not known)."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADINGS)
    for run in runs:
        writer.writerows(_of_run(run))
    for retrieval in retrievals:
        writer.writerows(_of_retrieval(retrieval))
    return buffer.getvalue()


def _of_run(run: Run) -> Iterator[Line]:
    for name, score in run.datasets.items():
        yield from _metrics(run, "dataset", name, score["meta_task"], score, score["num_pred"])
    for group in (*run.summary["meta_tasks"], *DISTRIBUTIONS, OVERALL):
        if mean := run.group(group):
            yield from _metrics(run, "mean", group, "", mean, "")


def _metrics(run: Run, kind: str, name: str, group: str, score: object, queries: object) -> Iterator[Line]:
    assert isinstance(score, dict)
    low, high = score["acc_interval"]
    yield run.label, kind, name, group, _ACC, score["acc"], low, high, queries
    for metric in METRICS:
        if score[metric] is not None:
            yield run.label, kind, name, group, metric, score[metric], "", "", queries


def _of_retrieval(run: RetrievalRun) -> Iterator[Line]:
    for name, score in run.summary["collections"].items():
        for metric, value in score["metrics"].items():
            low, high = value["interval"]
            group, queries = score.get("group") or "", score["num_queries"]
            yield run.label, "collection", name, group, metric, value["mean"], low, high, queries
    for group, mean in run.summary["groups"].items():
        for metric, value in mean.items():
            if "@" in metric:
                yield run.label, "mean", group, "", metric, value, "", "", ""
