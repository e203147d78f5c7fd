"""The tables of one or more runs as data, for the terminal, `report.md` and the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from eval.cells import Row, ScoreTable, not_told_apart
from eval.invocation import Invocation
from eval.original import IS_ORIGINAL
from vlm2vec.backbones.image_limits import describe_limits
from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.evaluation.aggregation import OVERALL
from vlm2vec.evaluation.data.selection import BENCHMARKS, DISTRIBUTIONS, TASKS, in_order
from vlm2vec.evaluation.metrics import METRICS
from vlm2vec.messages.words import counted
from vlm2vec.mmeb import META_TASKS, MMEB, PUBLISHED_SCORES, Benchmark

# All groups that have a mean, in the order of the paper's table.
MEAN_GROUPS = (*META_TASKS, *DISTRIBUTIONS, OVERALL)
# The groups of the paper's main table under its own headings, so that all columns fit a terminal.
_PAPER_HEADINGS = {
    **dict(zip(META_TASKS, ("Cls", "VQA", "Ret", "VG"), strict=True)),
    **dict(zip((*DISTRIBUTIONS, OVERALL), ("IND", "OOD", "all"), strict=True)),
}


# Names of checkpoints of a training run, and usual names of exported ones.
_STEP = re.compile(r"(?:checkpoint|step)[-_]?(\d+)")


@dataclass(frozen=True)
class Run:
    """A scored run: its column's heading and the content of its `scores.json`.

    Attributes:
        label: The heading.
        summary: The content.
        step: The training step of its model; None: not known.
        calls: The calls of the program that scored it; none for a run of an older version.
    """

    label: str
    summary: Mapping[str, Any]
    step: int | None = None
    calls: tuple[Invocation, ...] = ()

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


def percent(share: float | None) -> float | None:
    """A share in percent; None: not known."""
    return None if share is None else 100.0 * share


def step_of(label: str, folder: Path, summary: Mapping[str, Any]) -> int | None:
    """The training step in a run's name, its folder or its model's path ("checkpoint-400"); None if there is none."""
    model = summary["model"]
    for name in (label, folder.name, str(model["checkpoint_path"] or ""), str(model["model_name"])):
        found = _STEP.findall(name)
        if found:
            return int(found[-1])
    return None


def score_table(runs: Sequence[Run], baseline: int = 0) -> ScoreTable:
    """Runs side by side, chance first: each dataset under its meta-task, the meta-task's mean, IND, OOD, overall.

    Args:
        runs: In the order of columns.
        baseline: Place of the run that the others are compared with.
    """
    datasets = {name: dataset for run in runs for name, dataset in run.datasets.items()}
    ordered = in_order(datasets, next((run.benchmark for run in runs if run.benchmark), None))
    sections = []
    for task in TASKS:
        rows = [_dataset_row(name, runs, baseline) for name in ordered if datasets[name]["meta_task"] == task]
        if rows:
            sections.append((*rows, _mean_row(task, runs, baseline)))
    means = [group for group in (*DISTRIBUTIONS, OVERALL) if any(run.group(group) for run in runs)]
    sections.append(tuple(_mean_row(group, runs, baseline) for group in means))
    benchmarks = sorted({str(run.summary["benchmark"] or "own datasets") for run in runs})
    return ScoreTable(
        title=f"Precision@1 in %, {' and '.join(benchmarks)}",
        headings=("dataset", "", "chance", *(run.label for run in runs)),
        sections=tuple(sections),
    )


def metrics_table(runs: Sequence[Run]) -> ScoreTable:
    """Every run's overall metrics: Precision@1 with its interval, and metrics beyond the first candidate."""
    rows = []
    for run in runs:
        overall = run.group(OVERALL)
        assert overall is not None
        low, high = (100 * bound for bound in overall["acc_interval"])
        figures = (percent(overall[name]) for name in METRICS)
        rows.append(Row((run.label, 100 * overall["acc"], f"{low:.1f} to {high:.1f}", *figures)))
    return ScoreTable(
        title="Overall metrics in %, mean over datasets",
        headings=("run", "P@1", "95 % interval", "hit@5", "hit@10", "MRR", "NDCG@10"),
        sections=(tuple(rows),),
    )


def has_paper_figures(runs: Sequence[Run]) -> bool:
    """Whether a run scored a whole group of the paper's benchmark."""
    return any(
        run.benchmark is MMEB and any(complete_mean(run, group) is not None for group in MEAN_GROUPS) for run in runs
    )


def paper_table(runs: Sequence[Run]) -> ScoreTable | None:
    """The runs in the form of the paper's main table, above the paper's scores; None if no run scored a whole group.

    The paper's means are over all datasets of a group, so a mean over some of them is left out.
    """
    if not has_paper_figures(runs):
        return None
    ours = [
        Row((run.label, *(complete_mean(run, group) for group in _PAPER_HEADINGS)), is_mean=True)
        for run in runs
        if has_paper_figures([run])
    ]
    papers = [
        Row((name, *(float(getattr(scores, group.lower())) for group in _PAPER_HEADINGS)))
        for name, scores in PUBLISHED_SCORES.items()
    ]
    return ScoreTable(
        title="MMEB: the runs above the paper's models",
        headings=("model", *_PAPER_HEADINGS.values()),
        sections=(tuple(ours), tuple(papers)),
    )


def complete_mean(run: Run, group: str) -> float | None:
    """A group's mean in percent, if exactly the datasets that the benchmark lists for it were scored."""
    mean = run.group(group)
    complete = mean is not None and mean["num_datasets"] == mean["num_datasets_of_benchmark"]
    return 100.0 * mean["acc"] if mean is not None and complete else None


def remarks(runs: Sequence[Run]) -> list[str]:
    """Reasons why columns are not comparable, and the programs' warnings."""
    lines = []
    if len({frozenset(run.datasets) for run in runs}) > 1:
        lines.append("The runs cover different datasets: their means are not over the same ones.")
    differing = [name for name in dict.fromkeys(name for run in runs for name in run.datasets) if _differs(name, runs)]
    if differing:
        lines.append(f"The runs were scored on different rows of {', '.join(differing)}.")
    for run in runs:
        tied = sum(score["num_tied"] or 0 for score in run.datasets.values())
        if tied and not run.summary.get("strict_original"):
            lines.append(f"{run.label}: {counted(tied, 'row')} lost by a tie with the truth.")
        if run.summary.get("strict_original"):
            lines.append(f"{run.label}: counted as the original does; {counted(tied, 'row')} tied with the truth.")
    warnings = {
        line: [run.label for run in runs if line in run.summary["warnings"]]
        for run in runs
        for line in run.summary["warnings"]
    }
    return lines + [f"{', '.join(labels)}: {line}." for line, labels in warnings.items()]


def _differs(name: str, runs: Sequence[Run]) -> bool:
    """Whether runs that scored a dataset had different rows of it."""
    scores = [run.datasets[name] for run in runs if name in run.datasets]
    return any(not _same_rows(one, other) for one, other in combinations(scores, 2))


def _same_rows(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two scores of a dataset are of the same rows, if both state it."""
    for fact in ("num_pred", "chance", "data"):
        own, others = one.get(fact), other.get(fact)
        if own != others and {own, others}.isdisjoint({None, ""}):
            return False
    return True


def _dataset_row(name: str, runs: Sequence[Run], baseline: int) -> Row:
    scores = [run.datasets.get(name) for run in runs]
    first = next(score for score in scores if score)
    cells = (name, first["distribution"] or "", *_figures(first, scores))
    return Row(cells, unclear=_unclear(cells, scores, baseline), apart=_apart(cells, [name], runs, baseline))


def _mean_row(group: str, runs: Sequence[Run], baseline: int) -> Row:
    means = [run.group(group) for run in runs]
    first = next(mean for mean in means if mean)
    count, size = first["num_datasets"], first["num_datasets_of_benchmark"]
    covered = f"{count} of {size}" if size > count else str(count)
    cells = (f"{group} (mean of {covered})", "", *_figures(first, means))
    members = {
        name
        for run in runs
        for name, score in run.datasets.items()
        if group in (score["meta_task"], score["distribution"], OVERALL)
    }
    apart = _apart(cells, members, runs, baseline)
    return Row(cells, is_mean=True, unclear=_unclear(cells, means, baseline), apart=apart)


def _figures(first: Mapping[str, Any], scores: Sequence[Mapping[str, Any] | None]) -> list[float | None]:
    return [percent(first["chance"]), *(100.0 * score["acc"] if score else None for score in scores)]


def _unclear(cells: Sequence[object], scores: Sequence[Mapping[str, Any] | None], baseline: int) -> frozenset[int]:
    """Places among the runs' numbers (the last cells) whose difference from the baseline's may be due to chance."""
    known = [(score["acc"], score["acc_interval"]) if score else None for score in scores]
    return frozenset(place + len(cells) - len(scores) for place in not_told_apart(known, baseline))


def _apart(cells: Sequence[object], names: Iterable[str], runs: Sequence[Run], baseline: int) -> frozenset[int]:
    """Places among the runs' numbers (the last cells) that are not over the baseline's datasets or rows."""
    reference, first = runs[baseline].datasets, len(cells) - len(runs)
    return frozenset(
        first + place
        for place, run in enumerate(runs)
        for name in names
        if (name in run.datasets) != (name in reference)
        or (name in reference and not _same_rows(run.datasets[name], reference[name]))
    )


def _prompt_format(model: Mapping[str, Any]) -> list[str]:
    """The name of the prompt format, if it is not the raw one, as a list of facts."""
    found = PromptFormat(**(model.get("prompt_format") or {}))
    return [] if found.is_same(PromptFormat()) else [f"prompt format {found.name}"]


def describe_run(run: Run) -> str:
    """One line with a run's model and size."""
    model, rows = run.summary["model"], counted(run.summary["num_rows"], "row")
    if run.summary.get(IS_ORIGINAL):
        return f"{run.label}: scored by the original's program, which counts a tie with the truth as right; {rows}."
    adapter = f" with adapter {model['checkpoint_path']}" if model["checkpoint_path"] else ""
    facts = ", ".join([f"fingerprint {model['fingerprint']}", *describe_limits(model), *_prompt_format(model)])
    items = run.summary["num_items"]
    unique = f", {counted(items, 'unique item')}" if items is not None else ""
    return f"{run.label}: {model['model_name']}{adapter} ({facts}), {rows}{unique}."
