"""The score table of one or more runs, as data: what the terminal and `report.md` both show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.summary import BENCHMARKS, DISTRIBUTIONS, OVERALL, TASKS, in_order
from vlm2vec.mmeb import MMEB, PUBLISHED_SCORES, Benchmark


@dataclass(frozen=True)
class Run:
    """A scored run: its column's heading and the content of its `scores.json`."""

    label: str
    summary: Mapping[str, Any]

    @property
    def benchmark(self) -> Benchmark | None:
        """The benchmark whose datasets were scored."""
        return BENCHMARKS.get(self.summary["benchmark"])

    @property
    def datasets(self) -> Mapping[str, Mapping[str, Any]]:
        """The scored datasets by name."""
        datasets: Mapping[str, Mapping[str, Any]] = self.summary["datasets"]
        return datasets

    def group(self, name: str) -> Mapping[str, Any] | None:
        """The mean over a meta-task, "IND", "OOD" or "overall"; None if no dataset of it was scored."""
        group: Mapping[str, Any] | None = self.summary["meta_tasks"].get(name, self.summary.get(name))
        return group


@dataclass(frozen=True)
class Row:
    """One line: a dataset or a mean. `cells` are in percent, one for each column, None = not scored."""

    label: str
    distribution: str
    is_mean: bool
    cells: tuple[float | None, ...]


@dataclass(frozen=True)
class ScoreTable:
    """The table: `columns` name the cells of each row; `sections` are its meta-tasks, then the overall means."""

    title: str
    columns: tuple[str, ...]
    sections: tuple[tuple[Row, ...], ...]
    notes: tuple[str, ...]


def build_table(runs: Sequence[Run]) -> ScoreTable:
    """Puts runs side by side, chance first, the paper's figures last where MMEB itself was scored."""
    published = list(PUBLISHED_SCORES) if any(run.benchmark is MMEB for run in runs) else []
    names = {name: dataset for run in runs for name, dataset in run.datasets.items()}
    ordered = in_order(names, next((run.benchmark for run in runs if run.benchmark), None))
    sections = []
    for task in TASKS:
        rows = [_dataset_row(name, runs, len(published)) for name in ordered if names[name]["meta_task"] == task]
        if rows:
            sections.append((*rows, _mean_row(task, runs, published)))
    means = [group for group in (*DISTRIBUTIONS, OVERALL) if any(run.group(group) for run in runs)]
    sections.append(tuple(_mean_row(group, runs, published) for group in means))
    benchmarks = sorted({str(run.summary["benchmark"] or "own datasets") for run in runs})
    return ScoreTable(
        title=f"Precision@1 in %, {' and '.join(benchmarks)}",
        columns=("chance", *(run.label for run in runs), *(f"paper: {name}" for name in published)),
        sections=tuple(sections),
        notes=tuple(_notes(runs)),
    )


def _dataset_row(name: str, runs: Sequence[Run], num_published: int) -> Row:
    scores = [run.datasets.get(name) for run in runs]
    first = next(score for score in scores if score)
    cells = (first["chance"], *(score["acc"] if score else None for score in scores), *[None] * num_published)
    return Row(name, first["distribution"] or "", False, _percent(cells))


def _mean_row(group: str, runs: Sequence[Run], published: Sequence[str]) -> Row:
    means = [run.group(group) for run in runs]
    first = next(mean for mean in means if mean)
    count, size = first["num_datasets"], first["num_datasets_of_benchmark"]
    covered = f"{count} of {size}" if size > count else str(count)
    ours = _percent((first["chance"], *(mean["acc"] if mean else None for mean in means)))
    # The paper's mean is over all datasets of a group: beside a mean over some of them it would mislead.
    papers = [getattr(PUBLISHED_SCORES[name], group.lower(), None) if count == size else None for name in published]
    return Row(f"{group} (mean of {covered})", "", True, (*ours, *papers))


def _percent(cells: Sequence[float | None]) -> tuple[float | None, ...]:
    return tuple(None if cell is None else 100.0 * cell for cell in cells)


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = [_describe(run) for run in runs]
    if len({frozenset(run.datasets) for run in runs}) > 1:
        notes.append("The runs cover different datasets: their means are not over the same ones.")
    facts: dict[str, set[tuple[int, float]]] = {}
    for run in runs:
        for name, score in run.datasets.items():
            facts.setdefault(name, set()).add((score["num_pred"], score["chance"]))
    differing = [name for name, values in facts.items() if len(values) > 1]
    if differing:
        notes.append(f"The runs were scored on different rows of {', '.join(differing)}.")
    tied = {run.label: sum(score["num_tied"] for score in run.datasets.values()) for run in runs}
    notes += [f"{label}: {count} rows are lost by a tie with the truth." for label, count in tied.items() if count]
    return notes


def _describe(run: Run) -> str:
    model = run.summary["model"]
    adapter = f" with adapter {model['checkpoint_path']}" if model["checkpoint_path"] else ""
    crops = f"{model['num_crops']} crops"
    return (
        f"{run.label}: {model['model_name']}{adapter} (fingerprint {model['fingerprint']}, {crops}), "
        f"{run.summary['num_rows']:,} rows, {run.summary['num_items']:,} unique items."
    )
