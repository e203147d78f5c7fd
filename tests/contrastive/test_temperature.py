"""The learned temperature: gradient, range, state, and equality on all ranks."""

from __future__ import annotations

import doctest
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.rig.comparing import assert_close_relative
from trials.rig.forked import run_ranks
from trials.rig.naive_loss import naive_loss
from vlm2vec.contrastive import ContrastiveLoss, Pairs, temperature
from vlm2vec.contrastive.temperature import LearnedTemperature

pytestmark = pytest.mark.numeric

BATCH, LEARNING_RATE = 7, 0.05


def batch_of_step(step: int) -> tuple[Tensor, Pairs]:
    """Another small batch for every step, the same on every rank."""
    generator = torch.Generator().manual_seed(step)
    representations = F.normalize(torch.randn(2 * BATCH, 6, generator=generator), dim=-1).requires_grad_()
    return representations, Pairs(torch.arange(BATCH), torch.arange(BATCH, 2 * BATCH))


def train(learned: LearnedTemperature, steps: range) -> None:
    """What one process with all rows does."""
    for step in steps:
        representations, pairs = batch_of_step(step)
        value, _ = ContrastiveLoss(learned)(representations, pairs, range(BATCH))
        value.backward()
        learned.step(LEARNING_RATE)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "matryoshka_dims": (3, 6)}])
@pytest.mark.parametrize("block_rows", [3, 100])
def test_shares_of_the_gradient_add_up_to_that_of_one_graph(block_rows: int, options: dict[str, bool]) -> None:
    representations, pairs = batch_of_step(0)
    learned = LearnedTemperature(initial=0.1)
    loss_fn = ContrastiveLoss(learned, block_rows=block_rows, **options)  # type: ignore[arg-type]
    for rows in (range(0, 5), range(5, 5), range(5, BATCH)):
        value, _ = loss_fn(representations, pairs, rows)
        value.backward()
    theta = torch.tensor(math.log(0.1), dtype=torch.float64, requires_grad=True)
    bidirectional, dims = bool(options), (3, 6) if options else ()
    naive = naive_loss(representations, pairs, theta.exp(), bidirectional=bidirectional, dims=dims)
    expected, expected_rows = torch.autograd.grad(naive, (theta, representations))
    assert learned.log_temperature.grad is not None
    assert_close_relative(learned.log_temperature.grad, expected, 1e-5, "gradient of the temperature")
    assert representations.grad is not None
    assert_close_relative(representations.grad, expected_rows, 2e-6, "gradient")


def test_a_temperature_that_is_not_updated_gives_the_loss_of_a_fixed_one() -> None:
    representations, pairs = batch_of_step(0)
    fixed, _ = ContrastiveLoss(0.02)(representations, pairs, range(BATCH))
    learned, _ = ContrastiveLoss(LearnedTemperature(initial=0.02))(representations, pairs, range(BATCH))
    assert_close_relative(learned, fixed, 1e-5)


def test_updates_are_adamws_without_decay() -> None:
    learned = LearnedTemperature(initial=0.1)
    theta = torch.tensor(math.log(0.1), requires_grad=True)
    adam = torch.optim.Adam([theta], lr=LEARNING_RATE)
    for step in range(4):
        train(learned, range(step, step + 1))
        representations, pairs = batch_of_step(step)
        adam.zero_grad()
        naive_loss(representations, pairs, theta.exp()).backward()
        adam.step()
        assert_close_relative(learned.value, theta.detach().exp(), 1e-5)


def test_stays_in_its_range_and_comes_back_from_its_border() -> None:
    learned = LearnedTemperature(initial=0.1, minimum=0.05, maximum=0.2)
    gradient = learned.log_temperature.grad
    assert gradient is not None
    for direction, border in ((1.0, 0.05), (-1.0, 0.2)):
        for _ in range(20):
            gradient.fill_(direction)
            learned.step(1.0)
        assert_close_relative(learned.value, border, 1e-6)
    before = learned.value.item()
    for _ in range(20):
        gradient.fill_(1.0)
        learned.step(0.01)
    assert learned.value.item() < before
    assert gradient.item() == 0


def test_continues_bit_for_bit_from_its_saved_state() -> None:
    whole, first = LearnedTemperature(initial=0.1), LearnedTemperature(initial=0.1)
    assert first.state_dict() == {
        **dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), 0.0),
        "log_temperature": -2.3025851249694824,
    }
    train(whole, range(6))
    train(first, range(3))
    second = LearnedTemperature()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    train(second, range(3, 6))
    assert second.state_dict() == whole.state_dict()
    assert second.state_dict()["step"] == 6
    with pytest.raises(KeyError, match="exp_avg"):
        second.load_state_dict({"log_temperature": -2.0, "step": 1.0})


def test_a_dropped_gradient_leaves_no_trace() -> None:
    """A step between two others whose update is skipped: as if it had not been."""
    one, other = LearnedTemperature(0.05), LearnedTemperature(0.05)
    train(one, range(1))
    train(other, range(1))
    representations, pairs = batch_of_step(9)
    ContrastiveLoss(other)(representations, pairs, range(BATCH))[0].backward()
    other.drop_gradient()
    train(one, range(1, 2))
    train(other, range(1, 2))
    assert one.state_dict() == other.state_dict()


def test_two_ranks_learn_what_one_learns_and_stay_equal(tmp_path: Path) -> None:
    outputs = run_ranks(2, ["-m", "tests.contrastive.temperature_worker"], tmp_path)
    states = [json.loads(output.split("state", 1)[1].splitlines()[0]) for output in outputs]
    assert states[0] == states[1]
    alone = LearnedTemperature(initial=0.1)
    train(alone, range(3))
    assert states[0] == pytest.approx(alone.state_dict(), rel=1e-5)


@pytest.mark.parametrize(
    ("initial", "minimum", "maximum"), [(0.0, 0.0, 1.0), (0.005, 0.01, 1.0), (2.0, 0.01, 1.0), (math.nan, 0.01, 1.0)]
)
def test_refuses_a_start_outside_its_range(initial: float, minimum: float, maximum: float) -> None:
    with pytest.raises(ValueError, match=f"initial temperature {initial} must be"):
        LearnedTemperature(initial, minimum, maximum)


def test_the_docstrings_example_runs() -> None:
    result = doctest.testmod(temperature)
    assert result.attempted > 0
    assert result.failed == 0
