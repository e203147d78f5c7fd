"""Mined lists from sidecar to loss: what the planner passes on, compared with plain loops over the lists."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.batches.test_layout import BATCH, MINED, FakeIndex, content, cost
from vlm2vec.batches.layout import ItemReference, lay_out
from vlm2vec.batches.reader import pairs_of
from vlm2vec.contrastive import ContrastiveLoss, Distillation
from vlm2vec.mined.rows import MinedRows

MOST, TAU, WEIGHT, TEACHER_TAU = 2, 0.1, 0.7, 0.05
TOLERANCE = 1e-6
ROWS = [("AB"[subset], int(at)) for subset, at in zip(BATCH.subsets, BATCH.positions, strict=True)]


def of(subset: str, position: int, side: str) -> int:
    """The content of a side of a sample."""
    return content(ItemReference(subset, position, side))


def plain_loss(vectors: dict[int, Tensor]) -> Tensor:
    """From the rows' subsets and positions and the sidecar alone: no layout, no item numbers, float64."""
    targets = [of(*row, "positive") for row in ROWS]
    queries = [of(*row, "query") for row in ROWS]
    mined: list[list[tuple[int, float]]] = []
    own: list[list[int]] = []
    false: list[set[int]] = []
    for subset, position in ROWS:
        found, starts = MINED["AB".index(subset)], FakeIndex().columns(subset)["negative_starts"]
        scores = found.negative_scores[found.negatives.offsets[position] :].tolist()
        first = found.negatives[position].tolist()[:MOST]
        mined.append([(of(subset, at, "positive"), score) for at, score in zip(first, scores, strict=False)])
        own.append([of(subset, position, "negative")] if starts[position + 1] > starts[position] else [])
        false.append({of(subset, at, "positive") for at in found.false_negatives[position].tolist()})
    hard = [item for row in range(len(ROWS)) for item in (*own[row], *(item for item, _ in mined[row]))]
    total = torch.zeros((), dtype=torch.float64)
    for row, (query, target) in enumerate(zip(queries, targets, strict=True)):
        score = {item: vectors[query] @ vector for item, vector in vectors.items()}
        others = [item for other, item in enumerate(targets) if other != row] + hard
        kept = [item for item in others if item == target or item not in false[row]]
        total = total + torch.logsumexp(torch.stack([score[item] / TAU for item in [target, *kept]]), 0)
        total = total - score[target] / TAU
        if mined[row]:
            subset, position = ROWS[row]
            candidates = [(target, float(MINED["AB".index(subset)].positive_score[position])), *mined[row]]
            teacher = F.log_softmax(torch.tensor([each for _, each in candidates]).double() / TEACHER_TAU, 0)
            student = F.log_softmax(torch.stack([score[item] / TAU for item, _ in candidates]), 0)
            total = total + WEIGHT * (teacher.exp() * (teacher - student)).sum()
    return total / len(ROWS)


@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
def test_negatives_false_negatives_and_scores_of_a_sidecar_reach_the_loss(ranks: int) -> None:
    rows = MinedRows(MINED, MOST, false_negatives=True, scores=True)
    layout = lay_out(BATCH, FakeIndex(), cost, ranks, hard_negatives=True, mined=rows)
    contents = [content(item) for item in layout.items]
    vectors = {
        each: F.normalize(torch.randn(8, generator=torch.Generator().manual_seed(each), dtype=torch.float64), dim=0)
        for each in contents
    }
    exact = torch.stack([vectors[each] for each in contents]).requires_grad_()
    expected = plain_loss(dict(zip(contents, exact, strict=True)))
    expected.backward()
    matrix = exact.detach().float().requires_grad_()
    loss_fn = ContrastiveLoss(TAU, distillation=Distillation(WEIGHT, TEACHER_TAU))
    parts = [loss_fn(matrix, pairs_of(layout), layout.rows_of_rank(rank)) for rank in range(ranks)]
    total = torch.stack([loss for loss, _ in parts]).sum()
    total.backward()
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=TOLERANCE)
    assert exact.grad is not None
    assert matrix.grad is not None
    assert float((matrix.grad - exact.grad).norm() / exact.grad.norm()) < TOLERANCE
    assert sum(int(statistics.masked_similar.sum()) for _, statistics in parts) > 0
    assert math.isfinite(float(total.detach()))
