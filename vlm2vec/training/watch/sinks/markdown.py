"""Markdown for trackers: a run's configuration, tables."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from vlm2vec.training.watch.sinks.sink import RunCard


def configuration_text(card: RunCard) -> str:
    """A page in Markdown: facts, then flags that differ from their defaults, then all flags."""
    parts = [table(["run", ""], [[name, escaped(fact)] for name, fact in card.facts.items()])]
    for title, flags in (("Flags that differ from their defaults", card.changed), ("All flags", card.flags)):
        rows = [[f"`--{name}`", f"`{value}`"] for name, value in sorted(flags.items())]
        parts.append(f"### {title}\n\n{table(['flag', 'value'], rows)}")
    return "\n\n".join(parts)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text in a cell of a Markdown table, as it is in the data."""
    plain = html.escape(" ".join(text.split()))
    return re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", plain)
