"""The loss compared with textbook formulas, forward and backward."""

from __future__ import annotations

import doctest
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.rig.comparing import assert_close_relative
from trials.rig.naive_loss import naive_loss
from vlm2vec.contrastive import ContrastiveLoss, Pairs, loss

pytestmark = pytest.mark.numeric

ITEMS, BATCH, WIDTH = 14, 9, 8
NO_NEGATIVES = None
# Row 3's hard negative is its own target (and that of rows 0 and 8), row 7's is row 2's target.
NEGATIVES = (12, -1, 13, 8, -1, -1, 12, 10, -1)


@pytest.fixture
def representations() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(ITEMS, WIDTH, generator=generator), dim=-1).requires_grad_()


def pairs_with(negatives: Sequence[int] | None) -> Pairs:
    """Rows 0, 3 and 8 share a target, rows 4 and 6 a query; row 5's query is row 1's target."""
    query, positive = torch.tensor([0, 1, 2, 3, 4, 9, 4, 6, 7]), torch.tensor([8, 9, 10, 8, 11, 2, 0, 1, 8])
    if negatives is None:
        return Pairs(query, positive)
    return Pairs(query, positive, *of_rows(negatives))


def of_rows(negatives: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Hard negatives and their rows, from one a row or -1."""
    by_row = torch.tensor(negatives)
    return by_row[by_row >= 0], torch.nonzero(by_row >= 0).flatten()


@pytest.fixture
def pairs() -> Pairs:
    return pairs_with(NO_NEGATIVES)


def gradient_of(value: Tensor, representations: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, representations)
    return gradient


@pytest.mark.parametrize("block_rows", [1, 4, 9, 100])
@pytest.mark.parametrize("dims", [(), (8,), (2, 8), (3,), (5, 2, 1)])
@pytest.mark.parametrize("negatives", [NO_NEGATIVES, NEGATIVES, (-1,) * BATCH])
def test_equals_the_textbook_with_any_options_in_any_blocks(
    representations: Tensor, negatives: Sequence[int] | None, dims: tuple[int, ...], block_rows: int
) -> None:
    pairs = pairs_with(negatives)
    for mask, bidirectional in itertools.product((False, True), repeat=2):
        loss_fn = ContrastiveLoss(0.1, mask, block_rows, bidirectional=bidirectional, matryoshka_dims=dims)
        value, _ = loss_fn(representations, pairs, range(BATCH))
        expected = naive_loss(representations, pairs, 0.1, mask, bidirectional, dims)
        assert_close_relative(value, expected, 2e-6, "loss")
        ours, theirs = gradient_of(value, representations), gradient_of(expected, representations)
        assert_close_relative(ours, theirs, 2e-6, "gradient")


def large_batch() -> tuple[Tensor, Pairs]:
    """4,096 pairs with 16 numbers an item: a few targets for many rows, every eighth row with a hard negative."""
    batch, width = 4096, 16
    generator = torch.Generator().manual_seed(1)
    representations = F.normalize(torch.randn(3 * batch, width, generator=generator), dim=-1).requires_grad_()
    query = torch.randint(0, batch, (batch,), generator=generator)
    positive = batch + torch.randint(0, batch, (batch,), generator=generator)
    negative = batch + torch.randint(0, 2 * batch, (batch // 8,), generator=generator)
    return representations, Pairs(query, positive, negative, torch.arange(0, batch, 8))


def one_matrix_loss(representations: Tensor, pairs: Pairs, temperature: float) -> Tensor:
    """Masked, in both directions, over a whole float64 matrix; hard negatives compacted."""
    assert pairs.negative is not None
    unit, own = representations.double(), torch.eye(len(pairs.query), dtype=torch.bool)
    column_items = torch.cat([pairs.positive, pairs.negative])
    same_target = pairs.positive[:, None] == column_items
    same_target[:, : len(own)] &= ~own
    scores = unit[pairs.query] @ unit[column_items].T / temperature
    reverse_scores = scores.T[: len(own)]
    same_pair = (pairs.query[:, None] == pairs.query) | (pairs.positive[:, None] == pairs.positive)
    matches = scores.diagonal()
    forward = scores.masked_fill(same_target, -torch.inf).logsumexp(dim=1) - matches
    reverse = reverse_scores.masked_fill(same_pair & ~own, -torch.inf).logsumexp(dim=1) - matches
    return (forward + reverse).mean() / 2


def test_equals_one_matrix_over_4096_pairs_in_ragged_blocks() -> None:
    representations, pairs = large_batch()
    expected = one_matrix_loss(representations, pairs, 0.05)
    expected_gradient = gradient_of(expected, representations)
    loss_fn = ContrastiveLoss(0.05, mask_false_negatives=True, block_rows=1000, bidirectional=True)
    kept_elements = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept_elements
        kept_elements = max(kept_elements, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        value, statistics = loss_fn(representations, pairs, range(4096))
    assert_close_relative(value, expected, 1e-6, "loss")
    error = (gradient_of(value, representations) - expected_gradient).norm() / expected_gradient.norm()
    assert error < 1e-6
    assert statistics.masked.sum() > 4096
    assert kept_elements <= representations.numel(), "a block of scores is kept for the backward pass"


class _Recording(ContrastiveLoss):
    """Remembers how many scores its blocks have."""

    blocks: list[int]

    def _query_to_target(self, queries: Tensor, columns: Tensor, *rest: Any) -> Any:
        self.blocks.append(len(queries) * len(columns))
        return super()._query_to_target(queries, columns, *rest)


def test_blocks_have_a_bounded_number_of_scores_unless_rows_are_given() -> None:
    representations, pairs = large_batch()
    automatic, given = _Recording(0.05), _Recording(0.05, block_rows=1000)
    automatic.blocks, given.blocks = [], []
    first, second = (loss_fn(representations, pairs, range(4096))[0] for loss_fn in (automatic, given))
    assert_close_relative(first, second, 1e-6, "loss")
    assert sum(automatic.blocks) == sum(given.blocks) == 4096 * (4096 + 512)
    assert loss.BLOCK_SCORES - 4608 < max(automatic.blocks) <= loss.BLOCK_SCORES
    assert max(given.blocks) == 1000 * (4096 + 512)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "matryoshka_dims": (2, 4)}])
def test_parts_of_the_rows_add_up_to_the_whole(representations: Tensor, options: dict[str, bool]) -> None:
    pairs = pairs_with(NEGATIVES)
    loss_fn = ContrastiveLoss(0.05, True, 3, **options)  # type: ignore[arg-type]
    whole, whole_statistics = loss_fn(representations, pairs, range(BATCH))
    parts = [loss_fn(representations, pairs, rows) for rows in (range(0, 4), range(4, 4), range(4, 9))]
    assert_close_relative(sum(value for value, _ in parts), whole, 1e-6, "loss")
    gradient = sum(gradient_of(value, representations) for value, _ in parts)
    assert_close_relative(gradient, gradient_of(whole, representations), 1e-6, "gradient")
    for name, figures in vars(whole_statistics).items():
        assert_close_relative(torch.cat([getattr(each, name) for _, each in parts]), figures, 1e-6, name)


def test_a_rank_without_rows_takes_part_in_the_backward_pass(representations: Tensor) -> None:
    loss_fn = ContrastiveLoss(0.05, bidirectional=True, matryoshka_dims=(2, 8))
    nothing, statistics = loss_fn(representations, pairs_with(NEGATIVES), range(4, 4))
    assert nothing.item() == 0
    assert statistics.hit.shape == statistics.loss.shape == (0,)
    nothing.backward()
    assert representations.grad is not None
    assert not representations.grad.any()


def test_full_width_alone_is_the_plain_loss(representations: Tensor, pairs: Pairs) -> None:
    plain, _ = ContrastiveLoss(0.05)(representations, pairs, range(BATCH))
    same, _ = ContrastiveLoss(0.05, matryoshka_dims=(WIDTH,))(representations, pairs, range(BATCH))
    assert_close_relative(same, plain, 1e-6, "loss")


def test_masked_columns_are_counted_per_row(representations: Tensor, pairs: Pairs) -> None:
    def masked(pairs: Pairs, mask: bool) -> list[int]:
        _, statistics = ContrastiveLoss(0.05, mask)(representations, pairs, range(BATCH))
        counts: list[int] = statistics.masked.tolist()
        return counts

    assert masked(pairs, True) == [2, 0, 0, 2, 0, 0, 0, 0, 2]
    assert masked(pairs_with(NEGATIVES), True) == [3, 0, 1, 3, 0, 0, 0, 0, 3]
    assert masked(pairs_with(NEGATIVES), False) == [0] * BATCH


def test_hits_need_a_strictly_better_target(pairs: Pairs) -> None:
    collapsed = F.normalize(torch.ones(ITEMS, WIDTH), dim=-1)
    _, statistics = ContrastiveLoss(0.05)(collapsed, pairs, range(BATCH))
    assert not statistics.hit.any()
    _, statistics = ContrastiveLoss(0.05)(
        separable(), Pairs(torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])), range(3)
    )
    assert statistics.hit.all()
    assert statistics.positive_similarity.tolist() == [1, 1, 1]
    assert statistics.hardest_negative_similarity.tolist() == [0, 0, 0]


def separable() -> Tensor:
    """Items 0, 1, 2 point along their own axis; item n + 3 equals item n."""
    return torch.eye(4).index_select(0, torch.tensor([0, 1, 2, 0, 1, 2]))


def test_hard_negatives_compete_and_the_targets_own_item_does_not() -> None:
    query, positive = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])
    loss_fn = ContrastiveLoss(0.05)
    # Item 0 is another item than target 3, though its vector is the same: row 0 ties with it.
    _, statistics = loss_fn(separable(), Pairs(query, positive, *of_rows([-1, 0, -1])), range(3))
    assert statistics.hit.tolist() == [False, True, True]
    assert statistics.hardest_negative_similarity.tolist() == [1, 0, 0]
    # Target 3 itself as somebody's hard negative is no competitor of row 0, masked or not.
    _, statistics = loss_fn(separable(), Pairs(query, positive, *of_rows([-1, 3, -1])), range(3))
    assert statistics.hit.all()
    # One target for all: there is no negative, and a missing hard negative is none.
    _, statistics = loss_fn(separable(), Pairs(query, torch.full((3,), 3), *of_rows([-1, -1, -1])), range(3))
    assert statistics.hardest_negative_similarity.tolist() == [-torch.inf] * 3


@pytest.mark.parametrize("dims", [(2, 4), (4, 2)])
def test_statistics_are_of_the_largest_dimension_and_of_query_to_target(
    representations: Tensor, dims: tuple[int, ...]
) -> None:
    pairs = pairs_with(NEGATIVES)
    _, statistics = ContrastiveLoss(0.1, bidirectional=True, matryoshka_dims=dims)(representations, pairs, range(BATCH))
    shortened = F.normalize(representations.detach()[:, :4], dim=-1)
    _, expected = ContrastiveLoss(0.1)(shortened, pairs, range(BATCH))
    for name, figures in vars(statistics).items():
        assert_close_relative(figures, getattr(expected, name), 1e-6, name)
        assert not figures.requires_grad


def test_runs_in_float32_whatever_surrounds_it(representations: Tensor, pairs: Pairs) -> None:
    loss_fn = ContrastiveLoss(0.02, bidirectional=True, matryoshka_dims=(4, 8))
    expected, _ = loss_fn(representations, pairs, range(BATCH))
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = loss_fn(representations, pairs, range(BATCH))
    assert inside.item() == expected.item()
    rounded = representations.detach().bfloat16()
    value, statistics = loss_fn(rounded, pairs, range(BATCH))
    assert value.dtype == statistics.positive_similarity.dtype == torch.float32
    assert value.item() == loss_fn(rounded.float(), pairs, range(BATCH))[0].item()


def test_pairs_move_with_their_hard_negatives() -> None:
    moved = pairs_with(NEGATIVES).to(torch.device("meta"))
    assert moved.negative is not None
    assert {moved.query.device.type, moved.positive.device.type, moved.negative.device.type} == {"meta"}
    assert pairs_with(NO_NEGATIVES).to(torch.device("cpu")).negative is None


def test_refuses_values_without_meaning(representations: Tensor, pairs: Pairs) -> None:
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"temperature .* not {temperature}"):
            ContrastiveLoss(temperature)
    with pytest.raises(ValueError, match="block_rows"):
        ContrastiveLoss(block_rows=0)
    with pytest.raises(ValueError, match="not -4"):
        ContrastiveLoss(matryoshka_dims=(8, -4))
    with pytest.raises(ValueError, match="distinct, not 8"):
        ContrastiveLoss(matryoshka_dims=(8, 4, 8))
    with pytest.raises(ValueError, match=r"9 exceeds the embeddings' 8"):
        ContrastiveLoss(matryoshka_dims=(9, 4))(representations, pairs, range(BATCH))
    with pytest.raises(ValueError, match="must have the same shape"):
        Pairs(pairs.query, pairs.positive, torch.tensor([1, 2]), torch.tensor([0]))
    with pytest.raises(ValueError, match="must have the same shape"):
        Pairs(pairs.query, pairs.positive[1:])
    with pytest.raises(ValueError, match="negative_row"):
        Pairs(pairs.query, pairs.positive, torch.tensor([1, 2]))


def test_the_docstrings_example_runs() -> None:
    result = doctest.testmod(loss)
    assert result.attempted > 0
    assert result.failed == 0
