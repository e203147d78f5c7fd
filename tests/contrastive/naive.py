"""The loss as the textbook writes it: one score at a time, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm2vec.contrastive import Pairs


def naive_loss(
    representations: Tensor,
    pairs: Pairs,
    temperature: float | Tensor,
    mask: bool = False,
    bidirectional: bool = False,
    dims: Sequence[int] = (),
) -> Tensor:
    """The loss of the whole batch; `representations` (items, dimension) in any dtype."""
    exact = representations.double()
    # At full width rows are unit rows already; to scale them again would only remove the gradient along them.
    shortened = {dim: F.normalize(exact[:, :dim], dim=-1) for dim in dims if dim < exact.shape[1]}
    widths = [shortened.get(dim, exact) for dim in dims or (exact.shape[1],)]
    losses = []
    for unit in widths:
        losses.append(_query_to_target(unit, pairs, temperature, mask))
        if bidirectional:
            losses.append(_target_to_query(unit, pairs, temperature, mask))
    return torch.stack(losses).mean()


def _query_to_target(unit: Tensor, pairs: Pairs, temperature: float | Tensor, mask: bool) -> Tensor:
    query, positive = pairs.query.tolist(), pairs.positive.tolist()
    negative = pairs.negative.tolist() if pairs.negative is not None else []
    losses = []
    for row in range(len(query)):
        competitors = [item for column, item in enumerate(positive) if column != row] + negative
        if mask:
            competitors = [item for item in competitors if item != positive[row]]
        losses.append(_cross_entropy(unit, query[row], positive[row], competitors, temperature))
    return torch.stack(losses).mean()


def _target_to_query(unit: Tensor, pairs: Pairs, temperature: float | Tensor, mask: bool) -> Tensor:
    query, positive = pairs.query.tolist(), pairs.positive.tolist()
    losses = []
    for row in range(len(query)):
        others = [column for column in range(len(query)) if column != row]
        if mask:
            others = [each for each in others if query[each] != query[row] and positive[each] != positive[row]]
        competitors = [query[each] for each in others]
        losses.append(_cross_entropy(unit, positive[row], query[row], competitors, temperature))
    return torch.stack(losses).mean()


def _cross_entropy(
    unit: Tensor, anchor: int, match: int, competitors: list[int], temperature: float | Tensor
) -> Tensor:
    scores = torch.stack([torch.dot(unit[anchor], unit[item]) / temperature for item in [match, *competitors]])
    return torch.logsumexp(scores, dim=0) - scores[0]
