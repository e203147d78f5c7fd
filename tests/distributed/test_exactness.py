"""One global batch, one answer: the cached step on real ranks compared with one plain graph."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from trials.exactness_grid import BATCHES, CHUNKS, DROPOUT, KIT, VARIANT_BATCHES, Batch, Cell
from trials.exactness_reference import rank_batch
from trials.rig.forked import run_ranks
from trials.rig.tiny import FAMILIES, PHI3_V

pytestmark = pytest.mark.numeric


# The setting whose engine also runs all options of the loss.
OF_KIT = (3, "lora", 0.0)


def sample(*settings: tuple[int, str, float], batches: Sequence[str] = tuple(BATCHES)) -> list[Cell]:
    """Kinds of batches, all by default, for some settings, each in one size of chunks; together all sizes."""
    return [
        Cell(stage, kind, dropout, batch, list(CHUNKS)[(number + shift) % len(CHUNKS)])
        for shift, (stage, kind, dropout) in enumerate(settings)
        for number, batch in enumerate([*batches, KIT] if (stage, kind, dropout) == OF_KIT else batches)
    ]


def of_other_families() -> list[Cell]:
    """ZeRO-3, all weights, checkpointing, a rank that has only text; ZeRO-2, adapters, dropout."""
    families = [family for family in FAMILIES if family != PHI3_V]
    return [
        *(Cell(3, "full checkpointed", 0.0, "text only on some ranks", "ragged", family) for family in families),
        *(Cell(2, "dora", DROPOUT, "mixed", "ragged", family) for family in families),
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
        ),
        # Under ZeRO-3 a call of the model takes longest. The settings above run every kind of batch under ZeRO-3, in
        # bfloat16, and with dropout.
        *sample(
            (3, "lora bf16", DROPOUT),
            (3, "dora adapter dropout", DROPOUT),
            batches=(*VARIANT_BATCHES, "no images"),
        ),
        Cell(3, "dora compiled", DROPOUT, "mixed", "ragged"),
        *(Cell(3, "dora bf16", dropout, "text only on some ranks", "one item") for dropout in (0.0, DROPOUT)),
        *(Cell(stage, kind, DROPOUT, "mixed", "ragged") for stage in (1, 2, 3) for kind in CHECKPOINTED),
        *of_other_families(),
    ],
    3: sample((3, "full", 0.0)),
}


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_batches_are_what_their_names_say(ranks: int) -> None:
    def num_image_chunks(batch: Batch, rank: int) -> int:
        return rank_batch(batch, CHUNKS["one item"], rank, ranks).chunks.repeat.num_image_chunks

    num_images = {name: [num_image_chunks(batch, rank) for rank in range(ranks)] for name, batch in BATCHES.items()}
    assert min(num_images["mixed"]) > 0
    for name in ("text only on some ranks", "images on one rank only"):
        assert num_images[name][0] > 0
        assert set(num_images[name][1:]) == {0}
    assert sum(num_images["no images"]) == 0
    assert all(sum(num_images[name]) > 0 for name in BATCHES if name != "no images")


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
