"""Mined negatives of the rows of a batch compared with plain loops over made-up lists."""

from __future__ import annotations

import numpy as np

from vlm2vec.mined.format import Lists, MinedSubset
from vlm2vec.mined.rows import MinedRows, RowNegatives, by_subset

SIZES = {"A": 9, "B": 5}


def lists(size: int, seed: int) -> list[list[int]]:
    """Up to four positions for each row, its own left out; every third row has none."""
    generator = np.random.default_rng(seed)
    return [
        [] if row % 3 == 0 else [int(each) for each in generator.permutation(size)[:4] if each != row]
        for row in range(size)
    ]


NEGATIVES = {name: lists(size, 1) for name, size in SIZES.items()}
FALSE_NEGATIVES = {name: lists(size, 2) for name, size in SIZES.items()}


def score(name: str, row: int, other: int) -> float:
    """A made-up cosine."""
    return (ord(name) + 7 * row + other) % 100 / 100


def joined(lists: list[list[int]]) -> Lists:
    values = np.array([each for row in lists for each in row], np.int32)
    return Lists(values, np.cumsum([0, *map(len, lists)]))


def mined(negatives: int = 0) -> MinedRows:
    subsets = []
    for name, size in SIZES.items():
        own = NEGATIVES[name]
        subsets.append(
            MinedSubset(
                positive_score=np.array([score(name, row, row) for row in range(size)], np.float32),
                negatives=joined(own),
                negative_scores=np.array([score(name, r, n) for r, row in enumerate(own) for n in row], np.float32),
                false_negatives=joined(FALSE_NEGATIVES[name]),
                cluster=np.full(size, -1, np.int32),
            )
        )
    return MinedRows(tuple(subsets), negatives)


# Rows of both subsets among each other, with and without lists, one sample twice.
BATCH = np.array([1, 0, 0, 1, 0, 0, 0]), np.array([4, 8, 0, 1, 2, 5, 8])
ROWS = [("AB"[subset], int(position)) for subset, position in zip(*BATCH, strict=True)]


def test_the_first_of_each_rows_negatives_in_the_order_of_rows() -> None:
    for most in (1, 2, 9):
        found = mined(most).row_negatives(*BATCH, {})
        expected = [
            (row, *ROWS[row], each) for row in range(7) for each in NEGATIVES[ROWS[row][0]][ROWS[row][1]][:most]
        ]
        assert len({len(NEGATIVES[name][position]) for name, position in ROWS}) > 2  # ragged
        assert [(row, "AB"[subset], *ROWS[row][1:], at) for row, subset, at in _columns(found)] == expected
        scores = np.array([score(name, row, at) for _, name, row, at in expected], np.float32)
        np.testing.assert_array_equal(found.scores, scores)


def _columns(found: RowNegatives) -> list[tuple[int, int, int]]:
    return list(zip(found.rows.tolist(), found.subsets.tolist(), found.positions.tolist(), strict=True))


def test_negatives_that_cannot_be_read_give_way_to_the_next() -> None:
    damaged = {("A", NEGATIVES["A"][8][0]), ("B", NEGATIVES["B"][4][1]), ("A", 77)}
    found = mined(2).row_negatives(*BATCH, by_subset(tuple(SIZES), damaged))
    readable = {
        row: [each for each in NEGATIVES[name][position] if (name, each) not in damaged][:2]
        for row, (name, position) in enumerate(ROWS)
    }
    assert [(row, at) for row, _, at in _columns(found)] == [(row, at) for row in readable for at in readable[row]]
    assert readable[1] != NEGATIVES["A"][8][:2]


def test_false_negatives_and_scores_of_the_targets() -> None:
    row, subsets, positions = mined().row_false_negatives(*BATCH)
    found = sorted(zip(row.tolist(), subsets.tolist(), positions.tolist(), strict=True))
    assert found == sorted(
        (row, "AB".index(name), each)
        for row, (name, position) in enumerate(ROWS)
        for each in FALSE_NEGATIVES[name][position]
    )
    expected = np.array([score(name, position, position) for name, position in ROWS], np.float32)
    np.testing.assert_array_equal(mined().positive_scores(*BATCH), expected)
