"""Tables of retrieval runs, as data: what the terminal, `report.md` and the page show beside Precision@1."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.cells import Row, ScoreTable, not_told_apart
from eval.invocation import Invocation
from eval.retrieval_results import RETRIEVAL_FILE
from eval.table import Run, percent
from vlm2vec.errors import InputError
from vlm2vec.evaluation.aggregation import OVERALL
from vlm2vec.formats.json_files import read_json, without_checksum
from vlm2vec.messages.words import counted
from vlm2vec.mmeb_v2 import VISDOC_GROUPS, VISDOC_METRIC, VISDOC_SETS

VISDOC = "visdoc"
_OWN = "own collections"
_SHOWN_METRICS = (VISDOC_METRIC, "ndcg_linear@10", "hit@1", "recall@10")


@dataclass(frozen=True)
class RetrievalRun:
    """A run of `eval.retrieval`: its heading, the content of its `retrieval.json`, and the calls that scored it."""

    label: str
    summary: Mapping[str, Any]
    calls: tuple[Invocation, ...] = ()

    def metric(self, collection: str, name: str) -> tuple[float, Sequence[float]] | None:
        """A metric's mean and interval as shares; None: not scored."""
        score = self.summary["collections"].get(collection)
        value = score["metrics"].get(name) if score else None
        return (value["mean"], value["interval"]) if value else None


def read_retrieval(folder: Path) -> Mapping[str, Any] | None:
    """A folder's `retrieval.json`; None if there is none.

    Raises:
        InputError: It is damaged, or not as `eval.retrieval` writes it.
    """
    path = folder / RETRIEVAL_FILE
    if not path.is_file():
        return None
    summary = without_checksum(read_json(path), path)
    try:
        for score in summary["collections"].values():
            values = score["metrics"][VISDOC_METRIC]
            low, high = values["interval"]
            if not 0 <= low <= values["mean"] <= high <= 1 or score["num_queries"] < 1:
                raise ValueError(f"{json.dumps(values)} are no share and its interval")
        _ = summary["groups"], summary["model"]["fingerprint"], summary["warnings"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not as python -m eval.retrieval writes it ({error}); score the run again") from error
    return summary


def retrieval_table(runs: Sequence[RetrievalRun], baseline: int = 0) -> ScoreTable:
    """Runs side by side: each collection under its group, the groups' means, the mean over visual documents.

    Args:
        runs: In the order of columns.
        baseline: Place of the run that the others are compared with.
    """
    order = {each.name: place for place, each in enumerate(VISDOC_SETS)}
    scores = {name: score for run in runs for name, score in run.summary["collections"].items()}
    names = sorted(scores, key=lambda name: (order.get(name, len(order)), name))
    sections = []
    for group in (*VISDOC_GROUPS, _OWN):
        members = [name for name in names if (scores[name].get("group") or _OWN) == group]
        rows = [_collection_row(name, scores[name], runs, baseline) for name in members]
        if rows and group != _OWN:
            rows.append(_mean_row(group, runs, baseline))
        if rows:
            sections.append(tuple(rows))
    if any(VISDOC in run.summary["groups"] for run in runs):
        sections.append((_mean_row(VISDOC, runs, baseline),))
    return ScoreTable(
        title="nDCG@5 in %, retrieval from a corpus",
        headings=("collection", "queries", "documents", *(run.label for run in runs)),
        sections=tuple(sections),
    )


def retrieval_metrics_table(runs: Sequence[RetrievalRun]) -> ScoreTable:
    """More metrics of every collection and run."""
    rows = []
    for run in runs:
        for name in run.summary["collections"]:
            values = [run.metric(name, metric) for metric in _SHOWN_METRICS]
            cells = (percent(value[0]) if value else None for value in values)
            interval = values[0][1] if values[0] else (0.0, 1.0)
            low, high = (100 * bound for bound in interval)
            rows.append(Row((run.label, name, *cells, f"{low:.1f} to {high:.1f}")))
    return ScoreTable(
        title="Retrieval metrics in %",
        headings=("run", "collection", "nDCG@5", "nDCG@10", "hit@1", "recall@10", "95 % interval of nDCG@5"),
        sections=(tuple(rows),),
    )


def groups_table(
    runs: Sequence[Run], retrievals: Sequence[RetrievalRun], videos: Sequence[Run] = ()
) -> ScoreTable | None:
    """MMEB-V2's groups side by side, each in its metric; None for fewer than two groups.

    Args:
        runs: Scores of images.
        retrievals: Scores of visual documents.
        videos: Scores of clips.
    """
    of_documents = [run for run in retrievals if VISDOC in run.summary["groups"]]
    groups: list[tuple[str, Mapping[str, tuple[float, str]]]] = [
        ("image, P@1", _overall(runs)),
        ("visdoc, nDCG@5", {run.label: _documents(run) for run in of_documents}),
        ("video, P@1", _overall(videos)),
    ]
    groups = [(heading, scores) for heading, scores in groups if scores]
    if len(groups) < 2:
        return None
    labels = dict.fromkeys(label for _, scores in groups for label in scores)
    rows = [
        Row((label, *(cell for _, scores in groups for cell in scores.get(label, (None, "0"))))) for label in labels
    ]
    return ScoreTable(
        title="Groups of MMEB-V2 in %",
        headings=("run", *(cell for heading, _ in groups for cell in (heading, "sets"))),
        sections=(tuple(rows),),
    )


def _overall(runs: Sequence[Run]) -> dict[str, tuple[float, str]]:
    """By run, its mean over datasets in percent, and how many they are."""
    means = {run.label: run.group(OVERALL) for run in runs}
    return {label: (100.0 * mean["acc"], str(mean["num_datasets"])) for label, mean in means.items() if mean}


def _documents(run: RetrievalRun) -> tuple[float, str]:
    mean = run.summary["groups"][VISDOC]
    covered = f"{mean['num_collections']} of {mean['num_collections_of_benchmark']}"
    return 100.0 * mean[VISDOC_METRIC], covered


def describe_retrieval(run: RetrievalRun) -> str:
    """A run's model and size in a line."""
    model, scores = run.summary["model"], run.summary["collections"].values()
    queries = counted(sum(score["num_queries"] for score in scores), "query", "queries")
    return f"{run.label}: {model['model_name']} (fingerprint {model['fingerprint']}), retrieval, {queries}."


def retrieval_remarks(runs: Sequence[RetrievalRun]) -> list[str]:
    """What was left out of the data."""
    return [f"{run.label}: {warning}." for run in runs for warning in run.summary["warnings"]]


def _collection_row(name: str, score: Mapping[str, Any], runs: Sequence[RetrievalRun], baseline: int) -> Row:
    values = [run.metric(name, VISDOC_METRIC) for run in runs]
    shares = (percent(value[0]) if value else None for value in values)
    cells = (name, f"{score['num_queries']:,}", f"{score['num_documents']:,}", *shares)
    return Row(
        cells,
        unclear=frozenset(place + 3 for place in not_told_apart(values, baseline)),
        apart=_apart(cells, [name], runs, baseline),
    )


def _mean_row(group: str, runs: Sequence[RetrievalRun], baseline: int) -> Row:
    means = [run.summary["groups"].get(group) for run in runs]
    first = next(mean for mean in means if mean)
    count, size = first["num_collections"], first["num_collections_of_benchmark"]
    shares = (percent(mean[VISDOC_METRIC]) if mean else None for mean in means)
    covered = f"{count} of {size}" if size > count else str(count)
    cells = (f"{group} (mean of {covered})", "", "", *shares)
    collections = {name: score for run in runs for name, score in run.summary["collections"].items()}
    members = [name for name, score in collections.items() if score.get("group") and group in (score["group"], VISDOC)]
    return Row(cells, is_mean=True, apart=_apart(cells, members, runs, baseline))


def _apart(
    cells: Sequence[object], names: Sequence[str], runs: Sequence[RetrievalRun], baseline: int
) -> frozenset[int]:
    """Places of the runs' numbers, the last cells, that are not over the baseline's collections."""
    first = len(cells) - len(runs)
    sizes = [[_size(run, name) for name in names] for run in runs]
    return frozenset(first + place for place, size in enumerate(sizes) if size != sizes[baseline])


def _size(run: RetrievalRun, name: str) -> tuple[int, int] | None:
    score = run.summary["collections"].get(name)
    return (score["num_queries"], score["num_documents"]) if score else None
