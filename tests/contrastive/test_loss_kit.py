"""Hardness weights, masks, temperatures by group, hard negatives and distillation against the textbook loss."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.rig.comparing import assert_close_relative
from trials.rig.naive_loss import naive_loss
from vlm2vec.contrastive import ContrastiveLoss, Distillation, LearnedTemperature, Negatives, Pairs

pytestmark = pytest.mark.numeric

ITEMS, BATCH, WIDTH = 20, 9, 8
NAN = math.nan
# Weights and masks that all change something on the batch below, alone and together.
NEGATIVES = {
    "nothing": Negatives(),
    "hardness": Negatives(hardness_weight=9.0),
    "similarity": Negatives(similarity=0.3),
    "margin": Negatives(margin=0.1),
    "beyond the target": Negatives(margin=-0.2),
    "own rows": Negatives(own_rows_only=True),
    "all": Negatives(hardness_weight=9.0, similarity=0.5, margin=-0.2, own_rows_only=True),
}
DISTILLATION = Distillation(weight=0.7, temperature=0.1)


def kit_pairs(ignored: bool = True) -> Pairs:
    """Rows 0, 3 and 8 share a target, rows 4 and 6 a query; rows have none to four hard negatives."""
    return Pairs(
        query=torch.tensor([0, 1, 2, 3, 4, 9, 4, 6, 7]),
        positive=torch.tensor([8, 9, 10, 8, 11, 2, 0, 1, 8]),
        # Row 3's second is its own target; 12 belongs to two rows, and twice to row 7.
        negative=torch.tensor([12, 13, 14, 12, 8, 15, 12, 16, 12, 17]),
        negative_row=torch.tensor([0, 0, 2, 3, 3, 5, 7, 7, 7, 7]),
        # Two items of row 1, one of them a target of three rows; row 6's own target; a couple without a column.
        ignored=torch.tensor([[1, 8], [1, 14], [6, 0], [4, 3], [5, 12]]) if ignored else None,
        # Row 2's target has no score; row 3's only scored candidate is its target.
        teacher_positive=torch.tensor([0.9, 0.8, NAN, 0.7, NAN, 0.6, 0.5, 0.9, 0.4]),
        teacher_negative=torch.tensor([0.8, 0.1, 0.9, NAN, NAN, 0.7, 0.2, NAN, 0.85, 0.3]),
        temperature_group=torch.tensor([0, 0, 2, 1, 2, 1, 0, 2, 1]),
    )


@pytest.fixture
def representations() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(ITEMS, WIDTH, generator=generator), dim=-1).requires_grad_()


def groups(*values: float) -> LearnedTemperature:
    learned = LearnedTemperature(initial=0.1, groups=[f"group {number}" for number in range(len(values))])
    with torch.no_grad():
        learned.log_temperature.copy_(torch.tensor(values).log())
    return learned


@pytest.mark.parametrize("distillation", [None, DISTILLATION])
@pytest.mark.parametrize("dims", [(), (3, 8)])
@pytest.mark.parametrize("name", NEGATIVES)
def test_equals_the_textbook_forward_and_backward(
    representations: Tensor, name: str, dims: tuple[int, ...], distillation: Distillation | None
) -> None:
    pairs = kit_pairs()
    for mask, bidirectional, block_rows in ((False, False, 4), (True, True, 2), (True, False, 100)):
        learned = groups(0.05, 0.1, 0.2)
        loss_fn = ContrastiveLoss(
            learned,
            mask,
            block_rows,
            bidirectional=bidirectional,
            matryoshka_dims=dims,
            negatives=NEGATIVES[name],
            distillation=distillation,
        )
        value, _ = loss_fn(representations, pairs, range(BATCH))
        theta = learned.log_temperature.detach().double().requires_grad_()
        expected = naive_loss(
            representations, pairs, theta.exp(), mask, bidirectional, dims, NEGATIVES[name], distillation
        )
        assert_close_relative(value, expected, 2e-6, "loss")
        ours = torch.autograd.grad(value, (representations, learned.log_temperature))
        theirs = torch.autograd.grad(expected, (representations, theta))
        assert_close_relative(ours[0], theirs[0], 4e-6, "gradient")
        assert_close_relative(ours[1], theirs[1], 4e-6, "gradient of the temperatures")


@pytest.mark.parametrize("name", [name for name in NEGATIVES if name != "nothing"])
def test_every_option_changes_the_loss(representations: Tensor, name: str) -> None:
    plain, _ = ContrastiveLoss(0.1)(representations, kit_pairs(), range(BATCH))
    changed, _ = ContrastiveLoss(0.1, negatives=NEGATIVES[name])(representations, kit_pairs(), range(BATCH))
    assert abs(changed.item() - plain.item()) > 1e-2 * plain.item()


def test_shares_of_ranks_add_up_to_the_whole(representations: Tensor) -> None:
    loss_fn = ContrastiveLoss(
        groups(0.05, 0.1, 0.2),
        True,
        2,
        bidirectional=True,
        matryoshka_dims=(3, 8),
        negatives=NEGATIVES["all"],
        distillation=DISTILLATION,
    )
    whole, statistics = loss_fn(representations, kit_pairs(), range(BATCH))
    parts = [loss_fn(representations, kit_pairs(), rows) for rows in (range(0, 4), range(4, 4), range(4, 9))]
    assert_close_relative(sum(value for value, _ in parts), whole, 1e-6, "loss")
    (expected,) = torch.autograd.grad(whole, representations)
    assert_close_relative(
        sum(torch.autograd.grad(value, representations)[0] for value, _ in parts), expected, 2e-6, "gradient"
    )
    for name, values in vars(statistics).items():
        assert_close_relative(torch.cat([getattr(each, name) for _, each in parts]), values, 1e-6, name)


def test_what_is_off_leaves_every_bit(representations: Tensor) -> None:
    """Knowledge that no option asks for, and options of nothing."""
    known = kit_pairs(ignored=False)
    bare = Pairs(known.query, known.positive, known.negative, known.negative_row)
    one, of_bare = ContrastiveLoss(0.05, True, 4)(representations, bare, range(BATCH))
    other, of_known = ContrastiveLoss(0.05, True, 4, negatives=Negatives())(representations, known, range(BATCH))
    assert one.item() == other.item()
    for name, values in vars(of_bare).items():
        assert torch.equal(values, getattr(of_known, name)), name


def test_no_gradient_goes_through_weights_and_masks(representations: Tensor) -> None:
    """With two candidates of equal weight, the gradient is that of the logits alone."""
    pairs = Pairs(torch.tensor([0, 1]), torch.tensor([2, 3]))
    negatives = Negatives(hardness_weight=9.0)
    value, _ = ContrastiveLoss(0.1, negatives=negatives)(representations, pairs, range(2))
    (gradient,) = torch.autograd.grad(value, representations)
    unit = representations.detach()
    expected = torch.zeros_like(unit)
    for row, (query, target, other) in enumerate(((0, 2, 3), (1, 3, 2))):
        scores = unit[query] @ unit[[target, other]].T
        wrong = torch.softmax(scores / 0.1 + 9.0 * torch.tensor([0.0, 1.0]) * scores, dim=0)[1]
        expected[query] += wrong / 0.1 / 2 * (unit[other] - unit[target])
        expected[target] -= wrong / 0.1 / 2 * unit[query]
        expected[other] += wrong / 0.1 / 2 * unit[query]
        assert row < 2
    assert_close_relative(gradient, expected, 1e-5)


def test_likely_matches_are_counted_apart_from_identical_items(representations: Tensor) -> None:
    pairs = kit_pairs(ignored=False)
    columns = pairs.column_items
    loss_fn = ContrastiveLoss(0.1, True, 2, negatives=Negatives(similarity=0.3))
    _, statistics = loss_fn(representations, pairs, range(BATCH))
    cosine = representations.detach() @ representations.detach().T
    for row, target in enumerate(pairs.positive.tolist()):
        others = [item for column, item in enumerate(columns.tolist()) if column != row]
        assert statistics.masked[row] == sum(item == target for item in others)
        assert statistics.masked_similar[row] == sum(item != target and cosine[target, item] > 0.3 for item in others)
    assert statistics.masked_similar.sum() > BATCH
    _, alone = ContrastiveLoss(0.1, negatives=Negatives(similarity=0.3))(representations, pairs, range(BATCH))
    assert torch.equal(alone.masked_similar, statistics.masked + statistics.masked_similar)


def test_the_mean_similarity_is_of_the_negatives_that_compete(representations: Tensor) -> None:
    pairs = kit_pairs()
    assert pairs.negative_row is not None
    for own_rows_only in (False, True):
        loss_fn = ContrastiveLoss(0.1, block_rows=4, negatives=Negatives(own_rows_only=own_rows_only))
        _, statistics = loss_fn(representations, pairs, range(BATCH))
        cosine = representations.detach() @ representations.detach().T
        row_of_column = [*[None] * BATCH, *pairs.negative_row.tolist()]
        for row, (query, target) in enumerate(zip(pairs.query, pairs.positive, strict=True)):
            competing = [
                cosine[query, item]
                for item, of in zip(pairs.column_items, row_of_column, strict=True)
                if item != target and (of is None or of == row or not own_rows_only)
            ]
            assert_close_relative(statistics.mean_negative_similarity[row], torch.stack(competing).mean(), 1e-5)
            assert_close_relative(statistics.hardest_negative_similarity[row], max(competing), 1e-6)
    one_target = Pairs(torch.tensor([0, 1]), torch.tensor([2, 2]))
    _, statistics = ContrastiveLoss(0.1)(representations, one_target, range(2))
    assert statistics.mean_negative_similarity.tolist() == [0, 0]


def test_rows_without_scores_add_no_divergence(representations: Tensor) -> None:
    _, statistics = ContrastiveLoss(0.1, distillation=DISTILLATION)(representations, kit_pairs(), range(BATCH))
    assert statistics.divergence.bool().tolist() == [row in (0, 5, 7) for row in range(BATCH)]
    unscored = replace(kit_pairs(), teacher_positive=None, teacher_negative=None)
    for pairs in (unscored, Pairs(unscored.query, unscored.positive)):
        plain, _ = ContrastiveLoss(0.1)(representations, pairs, range(BATCH))
        value, statistics = ContrastiveLoss(0.1, distillation=DISTILLATION)(representations, pairs, range(BATCH))
        assert value.item() == plain.item()
        assert not statistics.divergence.any()


def test_temperatures_of_groups_are_one_adamw_and_resume_bit_for_bit(representations: Tensor) -> None:
    learned, whole = groups(0.05, 0.1, 0.2), groups(0.05, 0.1, 0.2)
    theta = learned.log_temperature.detach().clone().requires_grad_()
    adam = torch.optim.Adam([theta], lr=0.05)
    pairs = kit_pairs()
    for step in range(4):
        for each in (learned, whole):
            ContrastiveLoss(each)(representations, pairs, range(BATCH))[0].backward()
            each.step(0.05)
        adam.zero_grad()
        naive_loss(representations.detach(), pairs, theta.exp()).backward()
        adam.step()
        assert_close_relative(learned.value, theta.detach().exp(), 1e-5)
        if step == 1:
            state = json.loads(json.dumps(learned.state_dict()))
            learned = groups(1.0, 1.0, 1.0)
            learned.load_state_dict(state)
    assert learned.state_dict() == whole.state_dict()
    assert len(set(learned.value.tolist())) == 3
    state = learned.state_dict()
    assert list(state)[:3] == ["step", "log_temperature/group 0", "log_temperature/group 1"]
    with pytest.raises(KeyError, match="log_temperature/group 3"):
        groups(0.1, 0.1, 0.1, 0.1).load_state_dict(state)
    with pytest.raises(KeyError, match="log_temperature"):
        LearnedTemperature().load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (Negatives, {"hardness_weight": -1.0}, "at least 0 and finite, not -1.0"),
        (Negatives, {"hardness_weight": NAN}, "not nan"),
        (Negatives, {"similarity": 1.0}, "between -1 and 1, not 1.0"),
        (Negatives, {"margin": 2.0}, "between -2 and 2, not 2.0"),
        (Distillation, {"weight": 0.0}, "positive and finite, not 0.0"),
        (Distillation, {"weight": 1.0, "temperature": 0.0}, "positive and finite, not 0.0"),
    ],
)
def test_refuses_values_without_meaning(make: Any, values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**values)


def test_refuses_pairs_that_do_not_fit(representations: Tensor) -> None:
    pairs = kit_pairs()
    with pytest.raises(ValueError, match="temperature_group"):
        ContrastiveLoss(groups(0.1, 0.2))(representations, Pairs(pairs.query, pairs.positive), range(BATCH))
    for changes in (
        {"teacher_positive": torch.zeros(2)},
        {"teacher_negative": torch.zeros(2)},
        {"teacher_positive": None},
        {"ignored": torch.zeros(3, 1, dtype=torch.int64)},
        {"temperature_group": torch.zeros(1, dtype=torch.int64)},
    ):
        with pytest.raises(ValueError, match=r"must have the same shape|teacher_negative|couples"):
            replace(pairs, **changes)
