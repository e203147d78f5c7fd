"""Tables on narrow terminals: no cell is ever cut."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from vlm2vec.messages.terminal import LOG_WIDTH, column, open_console, print_table

HEADINGS = (
    "",
    "weights",
    "the largest\n--chunk_tokens",
    "a/path/that/is/longer/than/any/column/of/figures",
    "peak",
)
ROWS = {
    "ZeRO-1": ("7.5", "69,632", "0.1", "1,500,000"),
    "ZeRO-3, offload": ("1,234,567.8", "121,856", "51.25", "-"),
}


def shown(width: int) -> list[str]:
    table = Table(*(column(heading, "right" if heading else "left") for heading in HEADINGS), title="T", caption="C")
    for name, cells in ROWS.items():
        table.add_row(name, *cells, style="bold")
    console = Console(width=width, file=io.StringIO(), record=True)
    print_table(console, table)
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_no_number_is_cut_at_any_width(width: int) -> None:
    lines = shown(width)
    text = "\n".join(lines)
    assert "…" not in text
    for name, cells in ROWS.items():
        of_row = [line for line in lines if f" {name} " in line]
        assert of_row
        # All figures of a row stand in lines that begin with its name, each of them once.
        figures = [word for line in of_row for word in line.replace("│", " ").split() if word not in name.split()]
        assert figures == list(cells)
    assert [line.strip() for line in lines if line.strip() in ("T", "C")] == ["T", "C"]
    if width >= 40:
        assert max(map(len, lines)) <= max(width, 62)  # the first column beside the widest


def test_a_table_that_fits_is_one_block() -> None:
    assert sum("ZeRO-1" in line for line in shown(120)) == 1
    assert sum("ZeRO-1" in line for line in shown(60)) > 1


@pytest.mark.parametrize(("columns", "width"), [("72", 72), ("", LOG_WIDTH), ("x", LOG_WIDTH)])
def test_logs_are_wide_unless_columns_says_otherwise(monkeypatch: pytest.MonkeyPatch, columns: str, width: int) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert open_console().width == width
