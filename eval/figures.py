"""The report's plots as SVG text: a radar plot over groups, and scores over training steps."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

# Colours that colour-blind people can distinguish (Okabe and Ito) for the runs, greys for the paper's models.
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
PAPER_COLOURS = ("#6b7280", "#9ca3af", "#b8bec7", "#cfd4da", "#e1e4e8")
CHANCE_COLOUR = "#111827"
_INK = "#374151"
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.edgecolor": "#d1d5db",
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "svg.hashsalt": "vlm2vec",  # the same plot gives the same bytes
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
}


def run_colour(number: int) -> str:
    """The colour of a run, by its position on the command line."""
    return RUN_COLOURS[number % len(RUN_COLOURS)]


def radar(axes_labels: Sequence[str], series: Sequence[tuple[Sequence[float], str]]) -> str:
    """A radar plot of scores in percent.

    Args:
        axes_labels: The labels of the spokes, at least three.
        series: For each line its values, one per spoke, and its colour.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 5.0))
        axes = figure.add_subplot(projection="polar")
        assert isinstance(axes, PolarAxes)
        angles = [2 * math.pi * spoke / len(axes_labels) for spoke in range(len(axes_labels))]
        for values, colour in series:
            closed = [*values, values[0]]
            axes.plot([*angles, angles[0]], closed, color=colour, linewidth=2.2)
            axes.fill([*angles, angles[0]], closed, color=colour, alpha=0.10)
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        axes.set_xticks(angles, axes_labels)
        axes.tick_params(axis="x", pad=10)
        for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
            side = round(math.sin(angle), 6)
            label.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
        top = max(20, math.ceil(max(max(values) for values, _ in series) / 20) * 20)
        axes.set_ylim(0, top)
        axes.set_yticks([top * part // 4 for part in (1, 2, 3, 4)])
        axes.tick_params(axis="y", labelsize=9)
        axes.set_rlabel_position(45)
        axes.grid(color="#e5e7eb")
        axes.spines["polar"].set_color("#d1d5db")
        return _svg(figure)


def curves(steps: Sequence[int], series: Mapping[str, tuple[Sequence[float | None], str]], chance: float | None) -> str:
    """Scores in percent over training steps.

    Args:
        steps: The training steps, ascending.
        series: For each name the values, one per step (None: not scored), and the colour.
        chance: The overall score of a random guess in percent; None: not known.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 4.4))
        axes: Axes = figure.add_subplot()
        for name, (values, colour) in series.items():
            points = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=2, marker="o", label=name)
        if chance is not None:
            axes.axhline(chance, color=CHANCE_COLOUR, linewidth=1, linestyle=(0, (3, 3)), label="chance (overall)")
        axes.set_xlabel("training step")
        axes.set_ylabel("Precision@1 in %")
        axes.set_ylim(bottom=0)
        axes.grid(color="#eef0f3")
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(frameon=False, fontsize=10, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        return _svg(figure)


def _svg(figure: Figure) -> str:
    """The plot as an `<svg>` element to embed in a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
