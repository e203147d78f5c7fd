"""One global batch, one answer: the cached step on real ranks against one plain graph."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from trials.exactness import BATCHES, CHUNKS, DROPOUT, Cell
from trials.rig.forked import run_ranks

pytestmark = pytest.mark.numeric


def sample(*settings: tuple[int, str, float]) -> list[Cell]:
    """All kinds of batches for some settings, each in one size of chunks; together all sizes."""
    return [
        Cell(stage, kind, dropout, batch, list(CHUNKS)[(number + shift) % len(CHUNKS)])
        for shift, (stage, kind, dropout) in enumerate(settings)
        for number, batch in enumerate(BATCHES)
    ]


CHECKPOINTED = ("lora checkpointed", "dora checkpointed")
CELLS = {
    1: sample((2, "full", 0.0)),
    2: [
        *sample(
            (1, "dora", DROPOUT),
            (2, "full", 0.0),
            (2, "lora", DROPOUT),
            (3, "full", DROPOUT),
            (3, "lora", 0.0),
            (2, "dora bf16", DROPOUT),
            (3, "dora", DROPOUT),
            (3, "lora bf16", DROPOUT),
            (3, "dora adapter dropout", DROPOUT),
        ),
        Cell(3, "dora compiled", DROPOUT, "mixed", "ragged"),
        *(Cell(stage, kind, DROPOUT, "mixed", "ragged") for stage in (1, 2, 3) for kind in CHECKPOINTED),
    ],
    3: sample((3, "full", 0.0)),
}


@pytest.mark.parametrize("ranks", list(CELLS))
def test_the_gradient_is_that_of_one_graph(ranks: int, tmp_path: Path) -> None:
    """The grid of `make exactness`, thinned out; with dropout, pass 2 also repeats pass 1 bit for bit."""
    cells, output = tmp_path / "cells.json", tmp_path / "errors.json"
    cells.write_text(json.dumps([asdict(cell) for cell in CELLS[ranks]]))
    run_ranks(
        ranks,
        ["-m", "trials.exactness", "--cells", str(cells), "--output", str(output)],
        tmp_path,
    )
    results = json.loads(output.read_text())
    cells_of = zip(CELLS[ranks], results, strict=True)
    assert [result for cell, result in cells_of if not result["error"] <= cell.tolerance] == []
