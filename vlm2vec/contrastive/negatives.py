"""Treatment of negatives in the loss: hardness weights, masks of likely false negatives, rows of hard negatives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm2vec.contrastive.pairs import Pairs


@dataclass(frozen=True)
class Negatives:
    r"""Weights and masks of a row's negatives; the defaults change nothing.

    A row's negatives are all columns except its target. Similarities that decide a weight or a mask are the model's,
    detached, so that no gradient flows through them. With Matryoshka dimensions, each width uses its shortened vectors.
    The same rules apply from targets to queries, with the two sides exchanged.

    Attributes:
        hardness_weight: alpha. A negative's logit s / tau becomes s / tau + alpha sg(s), so that its term in the
            denominator is weighted by e^(alpha s) (LLaVE, arXiv 2503.04812, eq. 5, alpha = 9). The target's logit
            stays. 0: no weights.
        similarity: S. Leaves out negatives whose cosine with the row's *target* is above S, because they are nearly
            the same item (RzenEmbed, arXiv 2510.27350: S = 0.95). From targets to queries: if the queries or the
            targets of the two rows are that similar. None: off.
        margin: M. Leaves out negatives c that are more similar to the *query* q than its target t minus a margin,
            s(q, c) > s(q, t) - M. M > 0 leaves out negatives that come close to the target (NV-Retriever's absolute
            margin, arXiv 2407.15831, applied there by a teacher when negatives are mined); M = 0 those that surpass it
            (GISTEmbed, arXiv 2402.16829, applied there by a guide model); M < 0 only those that surpass it by more
            than -M. For an untrained model, M >= 0 leaves out most negatives: start with M < 0, or train without it
            first. None: off.
        own_rows_only: Whether a hard negative competes only in its row, not in all rows.

    Items that `Pairs.ignored` names for a row are always left out of that row.

    Raises:
        ValueError: A value is out of range.
    """

    hardness_weight: float = 0.0
    similarity: float | None = None
    margin: float | None = None
    own_rows_only: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.hardness_weight < math.inf:
            raise ValueError(f"the hardness weight must be at least 0 and finite, not {self.hardness_weight}")
        if self.similarity is not None and not -1 < self.similarity < 1:
            raise ValueError(f"the similarity of false negatives must be between -1 and 1, not {self.similarity}")
        if self.margin is not None and not -2 < self.margin < 2:
            raise ValueError(f"the margin of false negatives must be between -2 and 2, not {self.margin}")

    @property
    def finds_false_negatives(self) -> bool:
        """Whether the model's similarities decide which negatives are left out."""
        return self.similarity is not None or self.margin is not None

    def foreign(self, pairs: Pairs, own: Tensor) -> Tensor | None:
        """Mask of other rows' hard negatives, which do not compete, shape (rows, columns); None if all compete."""
        if not self.own_rows_only or pairs.negative_row is None:
            return None
        of_others = pairs.negative_row != own[:, None]
        return torch.cat([of_others.new_zeros((len(own), len(pairs.query))), of_others], dim=1)

    def weighted(self, logits: Tensor, similarity: Tensor, own: Tensor) -> Tensor:
        """Adds the hardness weights to the logits of negatives; the match of each row is its column `own`."""
        if self.hardness_weight == 0:
            return logits
        return logits + (self.hardness_weight * similarity.detach()).scatter(1, own[:, None], 0.0)

    def similar_columns(self, similarity: Tensor, columns: Tensor, pairs: Pairs, own: Tensor) -> Tensor | None:
        """Mask of likely matches among the columns of some rows, from queries to targets and hard negatives.

        Args:
            similarity: Cosine of the rows' queries and the columns, shape (rows, columns).
            columns: Representations of the columns, the targets of all rows first, shape (columns, dimension).
            pairs: The global batch.
            own: Numbers of the rows, which are also the columns of their targets.

        Returns:
            The mask, shape (rows, columns); None if nothing is left out.
        """
        found = self._by_margin(similarity, own)
        if self.similarity is not None:
            found.append(_are_similar(columns, own, self.similarity))
        if pairs.ignored is not None and len(pairs.ignored):
            found.append(_are_listed(pairs.ignored, own[:, None], pairs.column_items))
        return _any_of(found)

    def similar_queries(
        self, similarity: Tensor, queries: Tensor, targets: Tensor, pairs: Pairs, own: Tensor
    ) -> Tensor | None:
        """Mask of likely matches among all queries, from targets to queries, shape (rows, batch).

        Args:
            similarity: Cosine of the rows' targets and all queries, shape (rows, batch).
            queries: Queries of all rows, shape (batch, dimension).
            targets: Targets of all rows, shape (batch, dimension).
            pairs: The global batch.
            own: Numbers of the rows.
        """
        found = self._by_margin(similarity, own)
        if self.similarity is not None:
            found += [_are_similar(side, own, self.similarity) for side in (queries, targets)]
        if pairs.ignored is not None and len(pairs.ignored):
            rows = torch.arange(len(pairs.query), device=own.device)
            found.append(_are_listed(pairs.ignored, rows, pairs.positive[own, None]))
        return _any_of(found)

    def _by_margin(self, similarity: Tensor, own: Tensor) -> list[Tensor]:
        if self.margin is None:
            return []
        scores = similarity.detach()
        return [scores > scores.gather(1, own[:, None]) - self.margin]


def _are_similar(items: Tensor, own: Tensor, threshold: float) -> Tensor:
    """Whether the cosine of items `own` and all items is above a threshold, shape (own, items)."""
    vectors = items.detach()
    return vectors.index_select(0, own) @ vectors.T > threshold


def _are_listed(couples: Tensor, rows: Tensor, items: Tensor) -> Tensor:
    """Whether (row, item) is one of the couples, for broadcast rows and items, without a host synchronisation."""
    # One number per couple, row * spread + item, allows a binary search. A hash table would need the host.
    spread = couples[:, 1].amax() + 1
    listed = (couples[:, 0] * spread + couples[:, 1]).sort().values
    wanted = rows * spread + items
    place = torch.searchsorted(listed, wanted).clamp(max=len(listed) - 1)
    # The number of an item above all listed ones could equal that of a couple of the next row.
    return (listed[place] == wanted) & (items < spread)


def _any_of(masks: list[Tensor]) -> Tensor | None:
    if not masks:
        return None
    found = masks[0]
    for mask in masks[1:]:
        found = found | mask
    return found
