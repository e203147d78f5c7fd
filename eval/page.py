"""Writes `report.html`: a whole report in one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from eval.comparison import Comparison
from eval.figures import PAPER_COLOURS, curves, radar, run_colour
from eval.invocation import scored_part
from eval.misses import Miss
from eval.table import MEAN_GROUPS, Run, complete_mean, has_paper_figures, percent, score_table
from vlm2vec.evaluation.aggregation import OVERALL
from vlm2vec.evaluation.data.selection import DISTRIBUTIONS, TASKS, in_order
from vlm2vec.messages.page import adaptive_svg, render_page
from vlm2vec.messages.words import counted
from vlm2vec.mmeb import PUBLISHED_SCORES

_TEMPLATES = Path(__file__).parent / "templates"
_STEP_COLOURS = ("#111827", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8b5cf6")
# With more columns, a narrow screen shows a hint to scroll.
_NARROW_COLUMNS = 3


@dataclass(frozen=True)
class Bar:
    """One bar, in percent; `low` and `high` bound its interval, `chance` is a mark across it. None: not known."""

    label: str
    value: float | None
    colour: str
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    faint: bool = False


@dataclass(frozen=True)
class BarGroup:
    """Bars under one heading."""

    title: str
    note: str
    bars: tuple[Bar, ...]


def render(comparison: Comparison, misses: dict[str, list[Miss]], num_images_missing: int) -> str:
    """The page.

    Args:
        comparison: At least one run of `eval.mmeb`; misses are those of the last one.
        misses: By dataset.
        num_images_missing: Images of misses that could not be read.
    """
    runs = comparison.runs
    # Names, texts and paths come from data: everything is escaped but the figures, whose labels matplotlib escapes.
    return render_page(
        _TEMPLATES,
        "report.html.j2",
        heading=score_table(runs).title.removeprefix("Precision@1 in %, "),
        cards=[_card(run, number) for number, run in enumerate(runs)],
        summary=comparison.summary(),
        groups=_mean_groups(runs),
        with_paper=has_paper_figures(runs),
        datasets=_dataset_sections(runs),
        radar=_radar(runs),
        curves=_curves(runs),
        misses=misses,
        misses_of=runs[-1].label,
        num_images_missing=num_images_missing,
        tables=comparison.tables(),
        described=comparison.described(),
        scored_part=scored_part,
        notes=comparison.remarks(),
        has_warnings=comparison.has_warnings,
        narrow_columns=_NARROW_COLUMNS,
    )


def _card(run: Run, number: int) -> dict[str, object]:
    overall = run.group(OVERALL)
    assert overall is not None
    low, high = (100 * bound for bound in overall["acc_interval"])
    return {
        "label": run.label,
        "colour": run_colour(number),
        "value": 100 * overall["acc"],
        "interval": f"{low:.1f} to {high:.1f}",
        "chance": percent(overall["chance"]),
        "detail": f"{counted(overall['num_datasets'], 'dataset')}, {counted(run.summary['num_rows'], 'row')}",
        "date": run.calls[-1].date if run.calls else None,
    }


def _mean_groups(runs: Sequence[Run]) -> list[BarGroup]:
    """Meta-tasks, IND, OOD and overall: the runs' bars, then the paper's models where the benchmark is theirs."""
    groups = []
    for name in (*TASKS, *DISTRIBUTIONS, OVERALL):
        means = [run.group(name) for run in runs]
        if not any(means):
            continue
        first = next(mean for mean in means if mean)
        bars = [
            _bar(run.label, mean, run_colour(number))
            for number, (run, mean) in enumerate(zip(runs, means, strict=True))
        ]
        if has_paper_figures(runs) and any(complete_mean(run, name) is not None for run in runs):
            bars += [
                Bar(model, float(getattr(scores, name.lower())), colour, faint=True)
                for (model, scores), colour in zip(PUBLISHED_SCORES.items(), PAPER_COLOURS, strict=True)
            ]
        covered, size = first["num_datasets"], first["num_datasets_of_benchmark"]
        note = f"{covered} of {counted(size, 'dataset')}" if size > covered else counted(covered, "dataset")
        groups.append(BarGroup(heading(name), note, tuple(bars)))
    return groups


def _dataset_sections(runs: Sequence[Run]) -> dict[str, list[BarGroup]]:
    """Every dataset's bars, by meta-task."""
    datasets = {name: score for run in runs for name, score in run.datasets.items()}
    ordered = in_order(datasets, next((run.benchmark for run in runs if run.benchmark), None))
    sections: dict[str, list[BarGroup]] = {}
    for name in ordered:
        bars = tuple(_bar(run.label, run.datasets.get(name), run_colour(number)) for number, run in enumerate(runs))
        group = BarGroup(name, datasets[name]["distribution"] or "", bars)
        sections.setdefault(datasets[name]["meta_task"], []).append(group)
    return {heading(task): sections[task] for task in TASKS if task in sections}


def heading(group: str) -> str:
    """A group's name as a reader writes it."""
    return "VQA" if group == "vqa" else group if group.isupper() else group.capitalize()


def _bar(label: str, score: object, colour: str) -> Bar:
    if not isinstance(score, dict):
        return Bar(label, None, colour)
    low, high = score["acc_interval"]
    return Bar(label, 100 * score["acc"], colour, 100 * low, 100 * high, percent(score["chance"]))


def _radar(runs: Sequence[Run]) -> Markup | None:
    """A radar over the meta-tasks that every run has; None for fewer than three."""
    tasks = [task for task in TASKS if all(run.group(task) for run in runs)]
    if len(tasks) < 3:
        return None
    series = [
        ([100 * group["acc"] for task in tasks if (group := run.group(task))], run_colour(number))
        for number, run in enumerate(runs)
    ]
    return Markup(adaptive_svg(radar([heading(task) for task in tasks], series)))


def _curves(runs: Sequence[Run]) -> Markup | None:
    """Scores over training steps; None unless two runs or more know theirs."""
    known = sorted((run for run in runs if run.step is not None), key=lambda run: run.step or 0)
    if len({run.step for run in known}) < 2:
        return None
    names = [name for name in (OVERALL, *TASKS, *MEAN_GROUPS) if any(run.group(name) for run in known)]
    names = list(dict.fromkeys(names))
    series = {}
    for name, colour in zip(names, _STEP_COLOURS, strict=False):
        groups = [run.group(name) for run in known]
        series[heading(name)] = ([100 * group["acc"] if group else None for group in groups], colour)
    overall = known[0].group(OVERALL)
    assert overall is not None
    return Markup(adaptive_svg(curves([run.step or 0 for run in known], series, percent(overall["chance"]))))
