"""The loss against textbook formulas, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm2vec.contrastive import ContrastiveLoss, Pairs

ITEMS, BATCH, WIDTH = 12, 9, 8


@pytest.fixture
def representations() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(ITEMS, WIDTH, generator=generator), dim=-1).requires_grad_()


@pytest.fixture
def pairs() -> Pairs:
    """Rows 0, 3 and 8 share a target; row 5's query is row 1's target."""
    return Pairs(torch.tensor([0, 1, 2, 3, 4, 9, 5, 6, 7]), torch.tensor([8, 9, 10, 8, 11, 2, 0, 1, 8]))


def naive_loss(representations: Tensor, pairs: Pairs, temperature: float, mask: bool) -> Tensor:
    losses = []
    for row in range(BATCH):
        scores = []
        for column in range(BATCH):
            if mask and column != row and pairs.positive[column] == pairs.positive[row]:
                continue
            score = torch.dot(representations[pairs.query[row]], representations[pairs.positive[column]])
            scores.append(score / temperature)
            if column == row:
                own = scores[-1]
        losses.append(torch.logsumexp(torch.stack(scores), dim=0) - own)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("block_rows", [1, 4, 9, 100])
def test_equals_the_textbook_in_any_blocks(representations: Tensor, pairs: Pairs, mask: bool, block_rows: int) -> None:
    loss, _ = ContrastiveLoss(0.1, mask, block_rows)(representations, pairs, range(BATCH))
    (gradient,) = torch.autograd.grad(loss, representations)
    expected = naive_loss(representations, pairs, 0.1, mask)
    (expected_gradient,) = torch.autograd.grad(expected, representations)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_parts_of_the_rows_add_up_to_the_whole(representations: Tensor, pairs: Pairs) -> None:
    loss_fn = ContrastiveLoss(0.05)
    whole, _ = loss_fn(representations, pairs, range(BATCH))
    parts = [loss_fn(representations, pairs, rows)[0] for rows in (range(0, 4), range(4, 4), range(4, 9))]
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-6, atol=1e-6)
    assert parts[1].item() == 0
    parts[1].backward()  # a rank without rows still takes part in the backward collectives
    assert representations.grad is not None
    assert not representations.grad.any()


def test_masked_columns_are_counted_per_row(representations: Tensor, pairs: Pairs) -> None:
    _, statistics = ContrastiveLoss(0.05, mask_false_negatives=True)(representations, pairs, range(BATCH))
    assert statistics.masked.tolist() == [2, 0, 0, 2, 0, 0, 0, 0, 2]
    _, statistics = ContrastiveLoss(0.05)(representations, pairs, range(BATCH))
    assert statistics.masked.tolist() == [0] * BATCH


def test_hits_need_a_strictly_better_target(pairs: Pairs) -> None:
    collapsed = F.normalize(torch.ones(ITEMS, WIDTH), dim=-1)
    _, statistics = ContrastiveLoss(0.05)(collapsed, pairs, range(BATCH))
    assert not statistics.hit.any()
    perfect = torch.zeros(ITEMS, WIDTH)
    for row, (query, positive) in enumerate(zip([0, 1, 2], [3, 4, 5], strict=True)):
        perfect[query, row] = perfect[positive, row] = 1
    three = Pairs(torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5]))
    _, statistics = ContrastiveLoss(0.05)(perfect, three, range(3))
    assert statistics.hit.all()
    assert statistics.positive_similarity.tolist() == [1, 1, 1]
    assert statistics.hardest_negative_similarity.tolist() == [0, 0, 0]


def test_runs_in_float32_whatever_surrounds_it(representations: Tensor, pairs: Pairs) -> None:
    loss_fn = ContrastiveLoss(0.02)
    expected, _ = loss_fn(representations, pairs, range(BATCH))
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = loss_fn(representations, pairs, range(BATCH))
    assert inside.dtype == torch.float32
    assert inside.item() == expected.item()


def test_refuses_values_without_meaning() -> None:
    with pytest.raises(ValueError, match="temperature"):
        ContrastiveLoss(0.0)
    with pytest.raises(ValueError, match="block_rows"):
        ContrastiveLoss(block_rows=0)
