"""The loss as in a textbook: one score at a time, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm2vec.contrastive import Distillation, Negatives, Pairs

PLAIN = Negatives()


def naive_loss(
    representations: Tensor,
    pairs: Pairs,
    temperature: float | Tensor,
    mask: bool = False,
    bidirectional: bool = False,
    dims: Sequence[int] = (),
    negatives: Negatives = PLAIN,
    distillation: Distillation | None = None,
) -> Tensor:
    """The loss of the whole batch; `representations` (items, dimension) in any dtype, `temperature` one or by group."""
    exact = representations.double()
    # At full width rows are already unit vectors; normalizing again would only remove the gradient along them.
    shortened = {dim: F.normalize(exact[:, :dim], dim=-1) for dim in dims if dim < exact.shape[1]}
    widths = [shortened.get(dim, exact) for dim in dims or (exact.shape[1],)]
    total = exact.new_zeros(())
    for unit in widths:
        batch = _Batch(unit, pairs, temperature, mask, negatives)
        loss = batch.query_to_target()
        if bidirectional:
            loss = (loss + batch.target_to_query()) / 2
        if distillation is not None:
            loss = loss + distillation.weight * batch.divergence(distillation.temperature)
        total = total + loss
    return total / len(widths)


class _Batch:
    """One global batch at one width."""

    def __init__(
        self, unit: Tensor, pairs: Pairs, temperature: float | Tensor, mask: bool, negatives: Negatives
    ) -> None:
        self.unit, self.temperature, self.mask, self.negatives = unit, temperature, mask, negatives
        self.query, self.positive = pairs.query.tolist(), pairs.positive.tolist()
        self.groups = None if pairs.temperature_group is None else pairs.temperature_group.tolist()
        rows = [] if pairs.negative_row is None else pairs.negative_row.tolist()
        self.hard = [] if pairs.negative is None else list(zip(rows, pairs.negative.tolist(), strict=True))
        self.ignored = set() if pairs.ignored is None else {tuple(couple) for couple in pairs.ignored.tolist()}
        self.teacher_positive = None if pairs.teacher_positive is None else pairs.teacher_positive.tolist()
        self.teacher_negative = None if pairs.teacher_negative is None else pairs.teacher_negative.tolist()

    def cosine(self, one: int, other: int) -> Tensor:
        return torch.dot(self.unit[one], self.unit[other])

    def value(self, one: int, other: int) -> float:
        return float(self.cosine(one, other).detach())

    def tau(self, row: int) -> float | Tensor:
        if isinstance(self.temperature, Tensor) and self.temperature.dim():
            assert self.groups is not None
            return self.temperature[self.groups[row]]
        return self.temperature

    def query_to_target(self) -> Tensor:
        losses = []
        for row, (query, target) in enumerate(zip(self.query, self.positive, strict=True)):
            competitors = [item for other, item in enumerate(self.positive) if other != row]
            competitors += [item for of, item in self.hard if of == row or not self.negatives.own_rows_only]
            kept = [item for item in competitors if not self.is_false(row, query, target, item)]
            losses.append(self.cross_entropy(row, query, target, kept))
        return torch.stack(losses).mean()

    def is_false(self, row: int, query: int, target: int, item: int) -> bool:
        rules = self.negatives
        if self.mask and item == target:
            return True
        if rules.similarity is not None and self.value(target, item) > rules.similarity:
            return True
        if rules.margin is not None and self.value(query, item) > self.value(query, target) - rules.margin:
            return True
        return (row, item) in self.ignored

    def target_to_query(self) -> Tensor:
        rules, losses = self.negatives, []
        for row, (query, target) in enumerate(zip(self.query, self.positive, strict=True)):
            kept = []
            for other, (its_query, its_target) in enumerate(zip(self.query, self.positive, strict=True)):
                likeness = max(self.value(query, its_query), self.value(target, its_target))
                above = self.value(target, its_query) - self.value(target, query)
                is_false = (
                    (self.mask and (its_query == query or its_target == target))
                    or (rules.similarity is not None and likeness > rules.similarity)
                    or (rules.margin is not None and above > -rules.margin)
                    or (other, target) in self.ignored
                )
                if other != row and not is_false:
                    kept.append(its_query)
            losses.append(self.cross_entropy(row, target, query, kept))
        return torch.stack(losses).mean()

    def cross_entropy(self, row: int, anchor: int, match: int, competitors: list[int]) -> Tensor:
        scores = [self.cosine(anchor, match) / self.tau(row)]
        for item in competitors:
            cosine = self.cosine(anchor, item)
            scores.append(cosine / self.tau(row) + self.negatives.hardness_weight * cosine.detach())
        return torch.logsumexp(torch.stack(scores), dim=0) - scores[0]

    def divergence(self, teacher_temperature: float) -> Tensor:
        assert self.teacher_positive is not None
        assert self.teacher_negative is not None
        total = self.unit.new_zeros(())
        for row, (query, target) in enumerate(zip(self.query, self.positive, strict=True)):
            scored = [(target, self.teacher_positive[row])]
            scored += [
                (item, score)
                for (of, item), score in zip(self.hard, self.teacher_negative, strict=True)
                if of == row and score == score
            ]
            if scored[0][1] != scored[0][1] or len(scored) == 1:
                continue
            teacher = (self.unit.new_tensor([score for _, score in scored]) / teacher_temperature).log_softmax(0)
            cosines = torch.stack([self.cosine(query, item) for item, _ in scored])
            total = total + (teacher.exp() * (teacher - (cosines / self.tau(row)).log_softmax(0))).sum()
        return total / len(self.query)
