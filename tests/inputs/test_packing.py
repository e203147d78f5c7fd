"""Packing items into chunks by a token budget or fixed counts."""

from __future__ import annotations

import random

import pytest

from vlm2vec.inputs.packing import FixedCounts, PackedItem, TokenBudget, merge


@pytest.fixture
def items() -> list[PackedItem]:
    chance = random.Random(0)
    return [
        PackedItem(chance.randint(1, 40) + 60 * image, image, chance.random() < 0.5)
        for image in (chance.random() < 0.3 for _ in range(97))
    ]


@pytest.mark.parametrize("budget", [1, 64, 200, 1000, 10**6])
def test_every_item_once_within_the_budget_and_images_apart(items: list[PackedItem], budget: int) -> None:
    chunks = TokenBudget(budget).pack(items)
    assert sorted(index for chunk in chunks for index in chunk) == list(range(97))
    for chunk in chunks:
        longest = max(items[index].num_tokens for index in chunk)
        assert len(chunk) == 1 or len(chunk) * longest <= budget
        assert len({items[index].has_image for index in chunk}) == 1
    with_images = [items[chunk[0]].has_image for chunk in chunks]
    assert with_images == sorted(with_images, reverse=True)


def test_padding_is_small(items: list[PackedItem]) -> None:
    chunks = TokenBudget(400).pack(items)
    padded = sum(len(chunk) * max(items[index].num_tokens for index in chunk) for chunk in chunks)
    assert padded < 1.1 * sum(item.num_tokens for item in items)


def lengths_of(chunks: list[list[int]], items: list[PackedItem]) -> list[list[int]]:
    return [[items[index].num_tokens for index in chunk] for chunk in chunks]


def test_a_chunk_ends_where_the_width_drops() -> None:
    """More than 10 % below the first item's length, once a quarter of the budget is full."""
    items = [PackedItem(length, False, True) for length in (100, 95, 90, 89, 70, 60)]
    assert lengths_of(TokenBudget(1000).pack(items), items) == [[100, 95, 90], [89, 70, 60]]
    assert lengths_of(TokenBudget(1000, max_shortfall=1.0).pack(items), items) == [[100, 95, 90, 89, 70, 60]]
    assert lengths_of(TokenBudget(10_000).pack(items), items) == [[100, 95, 90, 89, 70, 60]]
    apart = [[index] for index in range(6)]
    assert lengths_of(merge(apart, items, TokenBudget(1000)), items) == [[100, 95, 90], [89, 70, 60]]
    assert lengths_of(merge(apart, items, TokenBudget(1000, max_shortfall=1.0)), items) == [[100, 95, 90, 89, 70, 60]]


def batches_of(lengths: list[int], budget: int, keep_order: bool = False) -> list[list[int]]:
    """As `encode` packs them, texts and images mixed."""
    items = [PackedItem(length, vision_units=index % 2) for index, length in enumerate(lengths)]
    return TokenBudget(budget, max_shortfall=1.0, images_apart=False, keep_order=keep_order).pack(items)


def test_strict_original_keeps_neighbours() -> None:
    assert batches_of([3, 9, 2, 4], 10, keep_order=True) == [[0], [1], [2, 3]]
    assert batches_of([3, 9, 2, 4], 10) == [[1], [3, 0], [2]]
    assert batches_of([50, 60], 10) == [[1], [0]]  # one item always fits
    assert batches_of([2, 3, 4, 9], 10, keep_order=True) == [[0, 1], [2], [3]]  # the longest item makes the width


def test_fixed_counts_mean_queries_and_targets_a_chunk(items: list[PackedItem]) -> None:
    chunks = FixedCounts(query_chunk_size=4, positive_chunk_size=7).pack(items)
    assert sorted(index for chunk in chunks for index in chunk) == list(range(97))
    queries = [chunk for chunk in chunks if items[chunk[0]].is_query]
    targets = [chunk for chunk in chunks if not items[chunk[0]].is_query]
    assert all(len(chunk) == 4 for chunk in queries[:-1])
    assert all(len(chunk) == 7 for chunk in targets[:-1])
    assert all(items[index].is_query for chunk in queries for index in chunk)
    with_images = [items[chunk[0]].has_image for chunk in chunks]
    assert with_images == sorted(with_images, reverse=True)


def test_merged_chunks_hold_the_same_items_in_the_same_order(items: list[PackedItem]) -> None:
    chunks = TokenBudget(200).pack(items)
    merged = merge(chunks, items, TokenBudget(800))
    assert [index for chunk in merged for index in chunk] == [index for chunk in chunks for index in chunk]
    assert len(merged) < len(chunks) / 2
    for chunk in merged:
        assert len(chunk) * max(items[index].num_tokens for index in chunk) <= 800
        assert len({items[index].has_image for index in chunk}) == 1
    assert merge(chunks, items, TokenBudget(1)) == chunks


def test_nothing_packs_to_nothing() -> None:
    assert TokenBudget(10).pack([]) == []
    assert FixedCounts(1, 1).pack([]) == []


def test_what_vision_units_count_as_is_part_of_the_budget() -> None:
    images = [PackedItem(num_tokens=10, vision_units=100, vision_tokens=40) for _ in range(6)]
    assert [len(chunk) for chunk in TokenBudget(150).pack(images)] == [3, 3]
    assert [len(chunk) for chunk in merge([[0], [1], [2], [3], [4], [5]], images, TokenBudget(100))] == [2, 2, 2]
    # Of one length: the chunk's sum counts, not its first item alone.
    mixed = [PackedItem(10, 1, vision_tokens=tokens) for tokens in (0, 80, 0, 0)]
    assert TokenBudget(100).pack(mixed) == [[0, 1], [2, 3]]
