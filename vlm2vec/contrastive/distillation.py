"""Distillation loss: the similarities of a row's candidates learn to follow a teacher's scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm2vec.contrastive.pairs import Pairs


@dataclass(frozen=True)
class Distillation:
    """Adds a divergence from a teacher's scores to the loss.

        L_D = w/B sum_i KL(softmax(z_i / T) || softmax(s_i / tau))

    over the candidates of row i, which are its target and its hard negatives, with the teacher's scores z
    (`Pairs.teacher_positive`, `Pairs.teacher_negative`) and the model's similarities s at the loss's temperature.
    Candidates without a score are left out; a row whose target or hard negatives have no scores adds nothing. Masks
    and hardness weights of the loss do not apply: the teacher's score already rates likely false negatives.

    Attributes:
        weight: w, positive.
        temperature: T, positive: for cosines about the loss's temperature, for a reranker's logits about 1.

    Raises:
        ValueError: A value is out of range.
    """

    weight: float
    temperature: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"the weight of distillation must be positive and finite, not {self.weight}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the teacher's temperature must be positive and finite, not {self.temperature}")

    def divergence(self, logits: Tensor, pairs: Pairs, own: Tensor) -> Tensor:
        """Unweighted divergence of some rows, shape (rows,).

        Args:
            logits: The rows' similarities over the temperature, shape (rows, columns), targets of all rows first.
            pairs: The global batch.
            own: Numbers of the rows.
        """
        positive, negative, negative_row = pairs.teacher_positive, pairs.teacher_negative, pairs.negative_row
        if positive is None or negative is None or negative_row is None:
            return torch.zeros_like(own, dtype=logits.dtype)
        positive = positive[own, None]
        is_own = (negative_row == own[:, None]) & negative.isfinite() & positive.isfinite()
        # The target is always a candidate, so that the softmax is defined; alone, it has probability 1 on both sides.
        is_candidate = torch.cat([is_own.new_ones((len(own), 1)), is_own], dim=1)
        scores = torch.cat([positive.nan_to_num(0.0, 0.0, 0.0), negative.expand_as(is_own)], dim=1)
        of_model = torch.cat([logits.gather(1, own[:, None]), logits[:, len(pairs.query) :]], dim=1)
        teacher, student = (
            each.masked_fill(~is_candidate, -math.inf).log_softmax(dim=1)
            for each in (scores.to(logits.dtype) / self.temperature, of_model)
        )
        return (teacher.exp() * (teacher - student).masked_fill(~is_candidate, 0.0)).sum(dim=1)
