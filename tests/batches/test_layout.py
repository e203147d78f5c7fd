"""Distinct items of a batch, distributed to ranks by cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from vlm2vec.batches.layout import BatchLayout, ItemReference, distribute, lay_out
from vlm2vec.batches.replacement import GlobalBatch
from vlm2vec.mined.format import Lists, MinedSubset
from vlm2vec.mined.rows import MinedRows

SIDES = ("query", "positive", "negative")


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
            "negative_hash": np.array([300, 100, 3]),
            "negative_starts": np.array([0, 1, 1, 2, 2, 2, 3]),
            **{f"{side}_text_length": np.full(size, 40) for side in SIDES},
            **{f"{side}_image_starts": np.arange(size + 1) // 2 for side in SIDES},
            **{f"{side}_{name}": np.full(size // 2, 30) for side in SIDES for name in ("widths", "heights")},
        }


BATCH = GlobalBatch(step=5, epoch=0, subsets=np.array([0, 0, 1, 1, 0]), positions=np.array([0, 1, 0, 1, 5]))


def cost(characters: int, image_sizes: Sequence[tuple[int, int]]) -> int:
    return characters // 4 + 100 * len(image_sizes)


def content(reference: ItemReference) -> int:
    columns = FakeIndex().columns(reference.subset)
    item = reference.position
    if reference.side == "negative":
        item = columns["negative_starts"][item] + reference.number
    return int(columns[f"{reference.side}_hash"][item])


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


def joined(lists: list[list[int]]) -> Lists:
    return Lists(np.array([each for row in lists for each in row], np.int32), np.cumsum([0, *map(len, lists)]))


def mined_subset(negatives: dict[int, list[int]], false_negatives: dict[int, list[int]]) -> MinedSubset:
    """Six rows; the score of a negative tells it: 0.9, 0.8, ... in a row's list."""
    own, false = ([lists.get(row, []) for row in range(6)] for lists in (negatives, false_negatives))
    return MinedSubset(
        positive_score=(np.arange(6) / 10).astype(np.float32),
        negatives=joined(own),
        negative_scores=np.array([0.9 - at / 10 for row in own for at in range(len(row))], np.float32),
        false_negatives=joined(false),
        cluster=np.full(6, -1, np.int32),
    )


MINED = (
    mined_subset({0: [2, 4], 5: [3, 0, 2]}, {0: [0, 4], 1: [2, 5], 5: [1]}),
    mined_subset({1: [0]}, {0: [1, 5]}),
)


@pytest.mark.parametrize("ranks", [1, 3])
def test_mined_negatives_join_their_rows_after_the_datas_own(ranks: int) -> None:
    own = lay_out(BATCH, FakeIndex(), cost, ranks, hard_negatives=True)
    layout = lay_out(BATCH, FakeIndex(), cost, ranks, hard_negatives=True, mined=MinedRows(MINED, 2, scores=True))
    assert rows(layout) == rows(own)
    assert layout.negative is not None
    assert layout.negative_row is not None
    found = [
        (int(row), content(layout.items[item])) for row, item in zip(layout.negative_row, layout.negative, strict=True)
    ]
    # Targets of A at 2 and 4, B's at 0 (which is also A's first query), A's at 3 and 0 (which is in the batch).
    assert found == [(0, 300), (0, 2), (0, 3), (2, 300), (3, 100), (4, 3), (4, 2), (4, 1)]
    contents = [content(item) for item in layout.items]
    assert len(set(contents)) == len(contents) == len(own.items) + 1
    assert {(item.subset, item.side) for item in layout.items if content(item) == 2} == {("A", "positive")}
    teacher = layout.teacher
    assert teacher is not None
    assert teacher.ignored is None
    assert teacher.positive is not None
    assert teacher.negative is not None
    assert teacher.positive.tolist() == pytest.approx([0.0, 0.1, 0.0, 0.1, 0.5])
    scores = [math.nan, 0.9, 0.8, math.nan, 0.9, math.nan, 0.9, 0.8]
    assert teacher.negative.tolist() == pytest.approx(scores, nan_ok=True)
    assert layout.digest != own.digest


def test_mined_negatives_leave_out_what_cannot_be_read() -> None:
    mined = MinedRows(MINED, 1)
    for damaged, expected in ((set(), [2, 100, 2]), ({("A", 3), ("A", 2), ("B", 0)}, [3, 1])):
        layout = lay_out(BATCH, FakeIndex(), cost, 2, mined=mined, damaged=damaged)
        assert layout.negative is not None
        assert [content(layout.items[item]) for item in layout.negative] == expected
        assert layout.teacher is not None
        assert layout.teacher.positive is layout.teacher.negative is None


def test_false_negatives_are_found_by_content_wherever_they_are_in_the_batch() -> None:
    layout = lay_out(BATCH, FakeIndex(), cost, 3, hard_negatives=True, mined=MinedRows(MINED, 1, false_negatives=True))
    assert layout.teacher is not None
    assert layout.teacher.ignored is not None
    found = sorted((row, content(layout.items[item])) for row, item in layout.teacher.ignored.tolist())
    # Row 0's target is the same item as A's first and second; A's at 4 is 3, which is row 4's target and hard negative.
    # Row 1 (A at 1) finds A's at 2 and 5, row 2 (B at 0) B's at 1 but not B's at 5, row 4 (A at 5) A's at 1.
    assert found == [(0, 3), (1, 2), (1, 3), (2, 11), (4, 1)]
    assert layout.digest != lay_out(BATCH, FakeIndex(), cost, 3, True, MinedRows(MINED, 1)).digest


def test_the_digest_distinguishes_batches() -> None:
    same = lay_out(BATCH, FakeIndex(), cost, 2).digest
    assert same == lay_out(BATCH, FakeIndex(), cost, 2).digest
    assert 0 <= same < 2**63
    other_step = GlobalBatch(6, 0, BATCH.subsets, BATCH.positions)
    other_rows = GlobalBatch(5, 0, BATCH.subsets, BATCH.positions[::-1].copy())
    assert len({same, *(lay_out(batch, FakeIndex(), cost, 2).digest for batch in (other_step, other_rows))}) == 3


def test_ranks_get_about_the_same_cost() -> None:
    costs = np.random.default_rng(0).integers(5, 800, 400)
    ranks = distribute(costs, 8)
    assert sorted(np.concatenate(ranks)) == list(range(400))
    loads = [costs[rank].sum() for rank in ranks]
    assert max(loads) / min(loads) < 1.01
