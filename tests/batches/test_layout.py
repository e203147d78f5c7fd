"""Distinct items, dealt to ranks by cost."""

from __future__ import annotations

import numpy as np
import pytest

from vlm2vec.batches.layout import BatchLayout, ItemReference, deal, lay_out
from vlm2vec.batches.replacement import GlobalBatch


class FakeIndex:
    """Two subsets; targets of A repeat, and A's first query is B's first target."""

    subsets = ("A", "B")

    def columns(self, subset: str) -> dict[str, np.ndarray]:
        size = 6
        query = np.arange(size) + (100 if subset == "A" else 200)
        positive = np.array([1, 1, 2, 2, 3, 3]) if subset == "A" else np.array([100, 11, 12, 13, 14, 15])
        return {
            "query_hash": query,
            "positive_hash": positive,
            "negative_hash": np.array([300, 0, 100, 0, 0, 3]),
            "has_negative": np.array([True, False, True, False, False, True]),
            **{f"{side}_text_length": np.full(size, 40) for side in ("query", "positive", "negative")},
            **{f"{side}_width": np.arange(size) % 2 * 30 for side in ("query", "positive", "negative")},
            **{f"{side}_height": np.arange(size) % 2 * 30 for side in ("query", "positive", "negative")},
        }


BATCH = GlobalBatch(step=5, epoch=0, subsets=np.array([0, 0, 1, 1, 0]), positions=np.array([0, 1, 0, 1, 5]))


def cost(characters: int, width: int, height: int) -> int:
    return characters // 4 + (100 if width else 0)


def content(reference: ItemReference) -> int:
    return int(FakeIndex().columns(reference.subset)[f"{reference.side}_hash"][reference.position])


def rows(layout: BatchLayout) -> list[tuple[int, int]]:
    return [
        (content(layout.items[query]), content(layout.items[positive]))
        for query, positive in zip(layout.query, layout.positive, strict=True)
    ]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 20])
def test_the_rows_are_the_same_for_any_number_of_ranks(ranks: int) -> None:
    layout = lay_out(BATCH, FakeIndex(), cost, ranks)
    assert rows(layout) == [(100, 1), (101, 1), (200, 100), (201, 11), (105, 3)]
    contents = [content(item) for item in layout.items]
    assert sorted(contents) == sorted({100, 101, 200, 201, 105, 1, 11, 3})  # 100 and 1 once each
    assert sum(layout.counts) == len(layout.items)
    assert len(layout.counts) == ranks
    assert [item for rank in range(ranks) for item in layout.of_rank(rank)] == list(layout.items)
    assert [row for rank in range(ranks) for row in layout.rows_of_rank(rank)] == list(range(5))


def test_hard_negatives_take_part_where_rows_have_one() -> None:
    without = lay_out(BATCH, FakeIndex(), cost, 2)
    assert without.negative is None
    layout = lay_out(BATCH, FakeIndex(), cost, 2, hard_negatives=True)
    assert rows(layout) == rows(without)
    assert layout.negative is not None
    assert layout.negative_row is not None
    # Row 4's is the same item as its own target, and row 2's the same as row 0's: encoded once.
    assert [content(layout.items[item]) for item in layout.negative] == [300, 300, 3]
    assert layout.negative_row.tolist() == [0, 2, 4]
    assert len(layout.items) == len(without.items) + 1
    assert layout.digest != without.digest


def test_the_digest_tells_batches_apart() -> None:
    same = lay_out(BATCH, FakeIndex(), cost, 2).digest
    assert same == lay_out(BATCH, FakeIndex(), cost, 2).digest
    assert 0 <= same < 2**63
    other_step = GlobalBatch(6, 0, BATCH.subsets, BATCH.positions)
    other_rows = GlobalBatch(5, 0, BATCH.subsets, BATCH.positions[::-1].copy())
    assert len({same, *(lay_out(batch, FakeIndex(), cost, 2).digest for batch in (other_step, other_rows))}) == 3


def test_ranks_get_about_the_same_cost() -> None:
    costs = np.random.default_rng(0).integers(5, 800, 400)
    hands = deal(costs, 8)
    assert sorted(np.concatenate(hands)) == list(range(400))
    loads = [costs[hand].sum() for hand in hands]
    assert max(loads) / min(loads) < 1.01
