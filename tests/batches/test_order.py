"""The global order as a pure function of data, mixture, seed and step."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from vlm2vec.batches import GlobalOrder
from vlm2vec.errors import InputError

SIZES = {"A": 103, "B": 40, "C": 7}


def samples(order: GlobalOrder, steps: range) -> list[tuple[int, int]]:
    return [
        (int(subset), int(position))
        for step in steps
        for subset, position in zip(order.batch(step).subsets, order.batch(step).positions, strict=True)
    ]


@pytest.mark.parametrize(("batch", "unit"), [(1, 1), (8, 1), (8, 4), (50, 5), (150, 1)])
def test_an_epoch_repeats_nothing_and_leaves_out_less_than_a_batch_and_the_tails(batch: int, unit: int) -> None:
    order = GlobalOrder(SIZES, batch, seed=3, unit=unit)
    seen = samples(order, range(order.steps_per_epoch))
    assert len(set(seen)) == len(seen) == batch * order.steps_per_epoch
    assert all(0 <= position < order.sizes[subset] for subset, position in seen)
    tails = sum(size % unit for size in SIZES.values())
    assert sum(SIZES.values()) - len(seen) < batch + tails


def test_a_unit_stays_in_one_subset() -> None:
    order = GlobalOrder(SIZES, 20, seed=0, unit=5)
    for step in range(order.steps_per_epoch):
        for start in range(0, 20, 5):
            assert len(set(order.batch(step).subsets[start : start + 5])) == 1


def test_epochs_differ_and_every_sample_comes_within_a_few() -> None:
    order = GlobalOrder(SIZES, 16, seed=0)
    first = samples(order, range(order.steps_per_epoch))
    second = samples(order, range(order.steps_per_epoch, 2 * order.steps_per_epoch))
    assert first != second
    assert order.batch(order.steps_per_epoch).epoch == 1
    everything = set(samples(order, range(4 * order.steps_per_epoch)))
    assert len(everything) == sum(SIZES.values())


def test_a_step_needs_no_earlier_step() -> None:
    walked, jumped = GlobalOrder(SIZES, 16, seed=5), GlobalOrder(SIZES, 16, seed=5)
    for step in range(30):
        expected = walked.batch(step)
    np.testing.assert_array_equal(jumped.batch(29).positions, expected.positions)
    np.testing.assert_array_equal(jumped.batch(29).subsets, expected.subsets)


def test_the_order_is_the_same_for_ever() -> None:
    """A resumed run on a newer numpy must see the same data: these digests never change."""
    order = GlobalOrder(SIZES, 16, seed=42, unit=2)
    digest = hashlib.sha256(repr(samples(order, range(40))).encode()).hexdigest()
    assert digest == "00099f657ed2ee36325d766f777aa5bc140b959cd441810ce69950de8bf35cc2"


def test_the_digest_tells_mixtures_apart() -> None:
    digests = {
        GlobalOrder(SIZES, 16, seed=1).digest,
        GlobalOrder(SIZES, 16, seed=2).digest,
        GlobalOrder(SIZES, 8, seed=1).digest,
        GlobalOrder(SIZES, 16, seed=1, unit=4).digest,
        GlobalOrder({**SIZES, "C": 8}, 16, seed=1).digest,
    }
    assert len(digests) == 5


def test_refuses_batches_that_cannot_be_filled() -> None:
    with pytest.raises(InputError, match="larger than an epoch"):
        GlobalOrder(SIZES, 151, seed=0)
    with pytest.raises(InputError, match="whole number of units"):
        GlobalOrder(SIZES, 10, seed=0, unit=4)
