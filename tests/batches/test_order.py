"""The global order as a pure function of data, mixture, seed and step."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from vlm2vec.batches import GlobalOrder, Mixture
from vlm2vec.batches.clusters import Clusters
from vlm2vec.batches.mixture import BLOCK_SAMPLES, WINDOW_BLOCKS, largest_remainder
from vlm2vec.batches.replacement import GlobalBatch
from vlm2vec.choices import BLOCK, META_TASK
from vlm2vec.errors import InputError

SIZES = {"A": 103, "B": 40, "C": 7}


def target_hashes(name: str) -> np.ndarray:
    """Nine targets in A, one for all of C, and A's first is C's."""
    return {"A": np.arange(103) % 9 - 4, "B": np.arange(40) * 2**40 + 100, "C": np.full(7, -4)}[name]


def samples(order: GlobalOrder, steps: range) -> list[tuple[int, int]]:
    return [
        (int(subset), int(position))
        for step in steps
        for subset, position in zip(order.batch(step).subsets, order.batch(step).positions, strict=True)
    ]


MIXTURES = {
    "by size": Mixture(),
    "units": Mixture(unit=4),
    "block": Mixture(order=BLOCK),
    "block, units": Mixture(order=BLOCK, unit=2),
    "distinct": Mixture(distinct_positives=True),
    "distinct, units, block": Mixture(unit=4, distinct_positives=True, order=BLOCK),
    "drawn": Mixture(max_samples=30),
    "first": Mixture(max_samples=30, first_samples=True),
    "weights": Mixture(weights={"A": 1, "B": 2, "C": 1}),
    "temperature": Mixture(temperature=2),
    "clusters": Mixture(unit=4),
    "clusters of two, units": Mixture(unit=4),
    "clusters, weights": Mixture(unit=4, weights={"A": 1, "B": 2, "C": 1}),
    "meta-tasks": Mixture(unit=4, groups=META_TASK),
    "meta-tasks, distinct, drawn": Mixture(unit=4, groups=META_TASK, distinct_positives=True, max_samples=30),
    "meta-tasks, clusters of two": Mixture(unit=4, groups=META_TASK),
}
ONCE = [name for name in MIXTURES if "weights" not in name and name != "temperature"]
# The same subsets under names that have a meta-task; the third has none.
OF_META_TASKS = {"A": "Visual7W", "B": "OK-VQA", "C": "C"}


def cluster_numbers(size: int) -> dict[str, np.ndarray]:
    """20 clusters in A, and rows left over; B without any; one in C, and three or five rows left over. At random."""
    numbers = {}
    for (name, rows), count in zip(SIZES.items(), (20, 40 // size, 1), strict=True):
        whole = np.repeat(np.arange(-1, count), [rows - size * count, *[size] * count])
        numbers[name] = np.random.default_rng(rows).permutation(whole).astype(np.int32)
    return numbers


def cluster_size(name: str) -> int:
    return 2 if "clusters of two" in name else 4


def order(name: str, batch: int = 8, seed: int = 3) -> GlobalOrder:
    names = OF_META_TASKS if "meta-tasks" in name else dict(zip(SIZES, SIZES, strict=True))
    sizes = {names[each]: size for each, size in SIZES.items()}
    hashes = {names[each]: target_hashes(each) for each in SIZES}
    clusters = None
    if "clusters" in name:
        numbers = cluster_numbers(cluster_size(name))
        clusters = Clusters.of({names[each]: numbers[each] for each in SIZES}, cluster_size(name))
    return GlobalOrder(sizes, batch, seed, MIXTURES[name], hashes.__getitem__, clusters)


@pytest.mark.parametrize("name", ONCE)
def test_an_epoch_repeats_nothing_and_leaves_out_what_it_says(name: str) -> None:
    walk = order(name)
    for epoch in range(3):
        seen = samples(walk, range(epoch * walk.steps_per_epoch, (epoch + 1) * walk.steps_per_epoch))
        assert len(set(seen)) == len(seen) == 8 * walk.steps_per_epoch
        assert all(0 <= position < list(SIZES.values())[subset] for subset, position in seen)
        assert sum(walk.sizes) - len(seen) == walk.remainder < 8 + 3 * (walk.mixture.unit - 1)
        assert walk.covers_each_sample_once


def test_what_an_epoch_leaves_out_comes_in_another() -> None:
    for name in ("by size", "units", "distinct", "clusters", "meta-tasks", "meta-tasks, clusters of two"):
        walk = order(name, batch=16)
        seen = samples(walk, range(8 * walk.steps_per_epoch))
        assert set(seen) == {(subset, at) for subset, size in enumerate(SIZES.values()) for at in range(size)}
        assert seen[: len(seen) // 8] != seen[len(seen) // 8 : len(seen) // 4]
        assert walk.batch(walk.steps_per_epoch).epoch == 1


@pytest.mark.parametrize("name", MIXTURES)
def test_a_step_needs_no_earlier_step(name: str) -> None:
    walked, jumped = order(name), order(name)
    for step in range(40):
        expected = walked.batch(step)
    np.testing.assert_array_equal(jumped.batch(39).positions, expected.positions)
    np.testing.assert_array_equal(jumped.batch(39).subsets, expected.subsets)
    np.testing.assert_array_equal(walked.batch(2).positions, jumped.batch(2).positions)  # back to an earlier epoch


@pytest.mark.parametrize(
    "name", ["units", "block, units", "distinct, units, block", "clusters", "clusters of two, units"]
)
def test_a_unit_stays_in_one_subset(name: str) -> None:
    walk = order(name)
    for step in range(2 * walk.steps_per_epoch):
        units = walk.batch(step).subsets.reshape(-1, walk.mixture.unit)
        assert (units == units[:, :1]).all()


@pytest.mark.parametrize(
    "name", ["clusters", "clusters of two, units", "clusters, weights", "meta-tasks, clusters of two"]
)
def test_clusters_stay_whole_but_for_one_in_a_pass_with_rows_left_over(name: str) -> None:
    walk, size = order(name), cluster_size(name)
    numbers = list(cluster_numbers(size).values())
    for epoch in range(3):
        seen = samples(walk, range(epoch * walk.steps_per_epoch, (epoch + 1) * walk.steps_per_epoch))
        dissolved: set[tuple[int, int]] = set()
        for start in range(0, len(seen), size):
            piece = [(subset, int(numbers[subset][position])) for subset, position in seen[start : start + size]]
            if len(set(piece)) > 1:  # a piece of rows left over
                dissolved |= {each for each in piece if each[1] >= 0}
                assert {subset for subset, _ in piece} in ({0}, {2})  # B has none
            else:
                assert piece[0][1] >= 0 or piece[0][0] in (0, 2)
        passes = 2 if "weights" in name else 1
        assert Counter(subset for subset, _ in dissolved).most_common(1)[0][1] <= passes


@pytest.mark.parametrize("name", ["meta-tasks", "meta-tasks, distinct, drawn", "meta-tasks, clusters of two"])
def test_a_unit_stays_in_one_meta_task_and_draws_from_all_its_subsets(name: str) -> None:
    walk = order(name)
    seen = np.stack([walk.batch(step).subsets.reshape(-1, walk.mixture.unit) for step in range(walk.steps_per_epoch)])
    units = seen.reshape(-1, walk.mixture.unit) == 2  # the subset without meta-task keeps to itself
    assert (units == units[:, :1]).all()
    others = seen.reshape(-1, walk.mixture.unit)[~units[:, 0]]
    assert any(len(set(unit.tolist())) == 2 for unit in others)
    assert set(others.ravel().tolist()) == {0, 1}


@pytest.mark.parametrize("name", ["weights", "temperature"])
def test_quotas_are_exact_and_a_pass_repeats_nothing(name: str) -> None:
    walk = order(name, batch=10)
    shares = [1, 2, 1] if name == "weights" else [103**0.5, 40**0.5, 7**0.5]
    quotas = largest_remainder(150, shares)
    seen = samples(walk, range(15))  # an epoch: 150 slots in 15 steps
    assert Counter(subset for subset, _ in seen) == dict(enumerate(quotas))
    assert not walk.covers_each_sample_once
    for subset, quota in enumerate(quotas):
        size = walk.sizes[subset]
        counts = Counter(position for each, position in seen if each == subset)
        assert len(counts) == min(size, quota)
        assert max(counts.values()) - min(counts.values()) <= 1  # whole passes, then a part of one


def test_a_smaller_share_continues_where_it_stopped() -> None:
    """A gets 37 of 103 samples an epoch: three epochs are disjoint but for the start of its second pass."""
    walk = order("weights", batch=10)
    seen = [position for subset, position in samples(walk, range(30)) if subset == 0]
    assert len(set(seen)) == len(seen) == 2 * largest_remainder(150, [1, 2, 1])[0]


def test_largest_remainders_sum_up() -> None:
    assert largest_remainder(10, [1, 1, 1]) == (4, 3, 3)
    assert largest_remainder(7, [0.1, 0.2, 0.7]) == (1, 1, 5)
    assert largest_remainder(150, [1, 2, 1]) == (38, 75, 37)


def test_at_most_n_samples_of_a_subset() -> None:
    first, drawn, redrawn = order("first"), order("drawn"), order("drawn", seed=4)
    assert first.sizes == drawn.sizes == (30, 30, 7)
    sets = [set(samples(each, range(4 * each.steps_per_epoch))) for each in (first, drawn, redrawn)]
    assert all(len(each) == 67 for each in sets)
    assert sets[0] == {(0, at) for at in range(30)} | {(1, at) for at in range(30)} | {(2, at) for at in range(7)}
    assert len({frozenset(each) for each in sets}) == 3


def test_blocks_are_read_in_one_piece_and_shuffled_in_a_window() -> None:
    size = 3 * BLOCK_SAMPLES * WINDOW_BLOCKS + 100
    walk = GlobalOrder({"A": size, "B": 5 * BLOCK_SAMPLES}, 64, seed=1, mixture=Mixture(order=BLOCK))
    seen = samples(walk, range(walk.steps_per_epoch))
    window = [position // BLOCK_SAMPLES for subset, position in seen if subset == 0][: BLOCK_SAMPLES * WINDOW_BLOCKS]
    blocks = Counter(window)
    assert len(blocks) == WINDOW_BLOCKS
    assert set(blocks.values()) == {BLOCK_SAMPLES}
    assert max(blocks) - min(blocks) > WINDOW_BLOCKS  # drawn from the whole subset
    assert len(set(window[:WINDOW_BLOCKS])) > WINDOW_BLOCKS / 2  # not one block after another


def test_distinct_targets_share_no_batch_where_possible() -> None:
    plain, distinct = order("by size"), order("distinct")
    assert plain.steps_per_epoch == 18  # and 19 rows with A's first target, C's seven among them
    # Nine targets in five or six of eight places, so not every row finds a batch; one row more than batches never can.
    assert plain.duplicate_targets(0) > 20
    assert 1 <= distinct.duplicate_targets(0) < 6
    once = [samples(each, range(18)) for each in (plain, distinct)]
    assert sorted(once[0]) == sorted(once[1])  # the same samples an epoch
    np.testing.assert_array_equal(distinct.batch(5).subsets, plain.batch(5).subsets)


def test_damaged_samples_give_way_to_their_like() -> None:
    walk = order("drawn")
    before = walk.batch(1)
    damaged = {(walk.subsets[before.subsets[row]], int(before.positions[row])) for row in (0, 5)}
    after = walk.batch(1, damaged)
    np.testing.assert_array_equal(after.subsets, before.subsets)
    assert np.flatnonzero(after.positions != before.positions).tolist() == [0, 5]
    members = {(walk.subsets[subset], at) for subset, at in samples(walk, range(40))}
    new = {(walk.subsets[after.subsets[row]], int(after.positions[row])) for row in (0, 5)}
    assert new <= members - damaged  # of the 30 drawn ones
    assert len(set(zip(after.subsets.tolist(), after.positions.tolist(), strict=True))) == 8
    # A substitute that is damaged too gives way in turn; where none is left, the message says so.
    assert not new & {(walk.subsets[s], int(p)) for s, p in zip(*_columns(walk.batch(1, damaged | new)), strict=True)}
    with pytest.raises(InputError, match="no readable sample is left"):
        walk.batch(1, {(name, at) for name in SIZES for at in range(103)})


def _columns(batch: GlobalBatch) -> tuple[np.ndarray, np.ndarray]:
    return batch.subsets, batch.positions


GOLDEN = {
    "by size": "78b8fa6df482223b",
    "units": "1c7754d9ef9bef3e",
    "block": "e36e947341fbbf02",
    "block, units": "d5b7ec4ca657cec3",
    "distinct": "aacac35864e13e2c",
    "distinct, units, block": "7c7d05aa32da9344",
    "drawn": "f4a17fe656a7bd0b",
    "first": "f978f19416a3b64c",
    "weights": "1678ff7d6b0798fd",
    "temperature": "1ace85010dfa1825",
    "clusters": "2169672d74e2b078",
    "clusters of two, units": "edc82351f217ddfd",
    "clusters, weights": "b12f6d9e53daddd2",
    "meta-tasks": "b0274e72ac6cf471",
    "meta-tasks, distinct, drawn": "7fcd82c0e6ae831e",
    "meta-tasks, clusters of two": "b3bd495287b7360f",
}


@pytest.mark.parametrize("name", MIXTURES)
def test_the_order_is_the_same_for_ever(name: str) -> None:
    """A resumed run on a newer numpy must see the same data: these digests never change."""
    digest = hashlib.sha256(repr(samples(order(name, batch=16, seed=42), range(40))).encode()).hexdigest()[:16]
    assert digest == GOLDEN[name]


def test_the_digest_distinguishes_orders() -> None:
    digests = {order(name).digest for name in MIXTURES}
    digests |= {order("units", seed=4).digest, order("units", batch=16).digest}
    digests |= {GlobalOrder({**SIZES, "C": 8}, 8, 3).digest}
    other = {**cluster_numbers(4), "B": cluster_numbers(4)["B"][::-1]}
    digests |= {GlobalOrder(SIZES, 8, 3, MIXTURES["clusters"], clusters=Clusters.of(other, 4)).digest}
    assert len(digests) == len(MIXTURES) + 4
    assert order("weights").digest == order("weights").digest


def test_digests_of_orders_without_groups_and_clusters_are_what_they_were() -> None:
    """A run resumes a checkpoint from before there were any."""
    assert order("by size").digest[:16] == "fe335ee084826201"


def test_refuses_clusters_and_groups_that_do_not_fit() -> None:
    numbers = cluster_numbers(4)
    clusters = Clusters.of(numbers, 4)
    with pytest.raises(InputError, match="a unit of 6 pairs is not a whole number of mined clusters of 4"):
        GlobalOrder(SIZES, 12, 0, Mixture(unit=6), clusters=clusters)
    numbers["B"][np.flatnonzero(numbers["B"] == 7)[0]] = 8
    with pytest.raises(InputError, match="subset B: cluster 7 has 3 rows, not 4"):
        Clusters.of(numbers, 4)
    of_eight = Clusters.of({name: np.full(size, -1, np.int32) for name, size in SIZES.items()}, 8)
    with pytest.raises(InputError, match="subset C has 7 samples, fewer than a cluster of 8"):
        GlobalOrder(SIZES, 16, 0, Mixture(unit=8), clusters=of_eight)
    with pytest.raises(InputError, match="no two subsets share a meta-task"):
        GlobalOrder({"A": 8, "OK-VQA": 8}, 8, 0, Mixture(unit=4, groups=META_TASK))
    with pytest.raises(InputError, match="meta-task vqa has 12 samples, fewer than a unit of 16"):
        GlobalOrder({"Visual7W": 8, "OK-VQA": 4, "A": 20}, 16, 0, Mixture(unit=16, groups=META_TASK))


def test_refuses_what_cannot_be_filled() -> None:
    with pytest.raises(InputError, match="larger than an epoch"):
        GlobalOrder(SIZES, 151, seed=0)
    with pytest.raises(InputError, match="whole number of units"):
        GlobalOrder(SIZES, 10, 0, Mixture(unit=4))
    with pytest.raises(InputError, match="subset C has 7 samples, fewer than a unit of 8"):
        GlobalOrder(SIZES, 16, 0, Mixture(unit=8))
    wrong: list[tuple[dict[str, float], str]] = [
        ({"A": 1, "B": 1}, "no weight for C"),
        ({"A": 1, "B": 1, "C": 1, "D": 1}, "D: no such subset; the subsets are A, B, C"),
        ({"A": 1, "B": 1, "C": 0}, "C=0: must be positive"),
        ({"A": 1, "B": 1, "C": 1e-6}, "subset C: its share of the mixture is less than one unit"),
    ]
    for weights, message in wrong:
        with pytest.raises(InputError, match=message):
            GlobalOrder(SIZES, 10, 0, Mixture(weights=weights))
