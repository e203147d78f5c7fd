"""Shards of schema version 2 are still read, and still written where nothing newer is needed.

`shards_v2/shards` and `steps.json` come from the code of that time, by conversion of `shards_v2/source` in shards of
four rows, and by `lay_out` of batches of four (seed 7) with hard negatives.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.conversion import convert
from data_prep.conversion_plan import DEFAULT_OPTIONS
from data_prep.source import SourceData
from data_prep.verify import verify
from trials.rig.hand_made_train import tree
from vlm2vec.batches import GlobalOrder, lay_out
from vlm2vec.shards import Item, ShardSet

DATA = Path(__file__).parents[1] / "data" / "shards_v2"


@pytest.mark.skipif(
    pq.read_metadata(next((DATA / "shards").rglob("*.parquet"))).created_by
    != f"parquet-cpp-arrow version {pa.cpp_version}",
    reason="the index's bytes name the version of Arrow that wrote them; a different one is installed",
)
def test_data_without_anything_new_give_the_bytes_of_version_2(tmp_path: Path) -> None:
    source = SourceData(DATA / "source", DATA / "source", ["A", "B"])
    convert(source, tmp_path / "shards", replace(DEFAULT_OPTIONS, rows_per_shard=4))
    assert tree(tmp_path / "shards") == tree(DATA / "shards")


def test_version_2_is_read_and_verified() -> None:
    shards = ShardSet.open(DATA / "shards")
    assert shards.fingerprint == "2f9de77e9586a6b73ead3c510dc7d60dc26b0987aba618a447174415f971651e"
    images = {path.name: path.read_bytes() for path in (DATA / "source/images/A/Train").iterdir()}
    negatives = [Item("wrong"), Item("<|image_1|> wrong", (images["1.png"],)), Item("", (images["3.jpg"],)), None]
    for row in range(6):
        sample, negative = shards.read("A", row), negatives[row % 4]
        assert sample.query == Item(f"<|image_1|>\nquestion {row}\n", (images[f"{row % 3}.png"],))
        assert (sample.positive, sample.negatives) == (Item(f"answer {row}"), (negative,) if negative else ())
        assert shards.read("B", min(row, 4)).positive == Item("", (images[f"{min(row, 4) % 3}.png"],))
    assert verify(DATA / "shards", decode=True).problems == ()


def cost(characters: int, image_sizes: Sequence[tuple[int, int]]) -> int:
    return 1 + characters // 4 + sum(width * height // 8 for width, height in image_sizes)


def test_version_2_gives_the_steps_of_then() -> None:
    shards = ShardSet.open(DATA / "shards")
    order = GlobalOrder(shards.num_samples, 4, 7)
    for then in json.loads((DATA / "steps.json").read_text()):
        batch = order.batch(then["step"])
        layout = lay_out(batch, shards, cost, then["ranks"], hard_negatives=True)
        assert layout.negative is not None
        assert layout.negative_row is not None
        now = {name: getattr(layout, name).tolist() for name in ("query", "positive", "negative", "negative_row")}
        now |= {"subsets": batch.subsets.tolist(), "positions": batch.positions.tolist()}
        now |= {"items": [[each.subset, each.position, each.side] for each in layout.items]}
        assert {**now, "counts": list(layout.counts)} == {name: then[name] for name in (*now, "counts")}
