"""Contrastive loss of one global batch: local rows against all columns, in blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlm2vec.contrastive.distillation import Distillation
from vlm2vec.contrastive.negatives import Negatives
from vlm2vec.contrastive.pairs import Pairs
from vlm2vec.contrastive.temperature import LearnedTemperature

# Scores of a block if block_rows is not given: 4 MiB at any global batch size, one block for 1,024 x 1,024 scores.
BLOCK_SCORES = 2**20

Result = TypeVar("Result")


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of each local row, from query to target; detached, shape (local rows,) each.

    Attributes:
        loss: Cross-entropy of the row, float32.
        hit: Whether the target is strictly more similar to the query than every other item, bool.
        positive_similarity: Cosine of query and target, float32.
        hardest_negative_similarity: Largest cosine of the query and any item but the target, hard negatives included,
            float32; minus infinity if there is none.
        mean_negative_similarity: Mean cosine of the query and these items, over columns, float32; 0 if there is none.
        masked: Number of columns left out because they are the same item as the target, int64.
        masked_similar: Number of columns left out as likely matches, by similarity or by a teacher, int64.
        divergence: Unweighted divergence from a teacher's scores, float32; 0 without distillation.
    """

    loss: Tensor
    hit: Tensor
    positive_similarity: Tensor
    hardest_negative_similarity: Tensor
    mean_negative_similarity: Tensor
    masked: Tensor
    masked_similar: Tensor
    divergence: Tensor


class ContrastiveLoss:
    """Cross-entropy of every query over the targets of the whole global batch (InfoNCE).

        L = -1/B sum_i log( exp(s(q_i, t_i) / tau) / sum_{c in C} exp(s(q_i, c) / tau) )

    with cosine similarity s on unit rows, B the global batch, tau the temperature, C the targets of all rows
    (VLM2Vec, arXiv 2410.05160, eq. 1; one direction and labels on the diagonal, as in the original) and, if pairs
    have them, the hard negatives of all rows. Computed in float32, whatever the inputs' dtype.

    Each rank computes its rows and divides by the *global* batch, so that the ranks' losses add up to the loss and
    their gradients to its gradient, however rows are distributed.

    When to use what: the defaults are the original's. Mask false negatives if many rows share a target (class names,
    short answers). Train in both directions if targets will also be used to search for queries. Give Matryoshka
    dimensions if you want to store shortened embeddings.

    Args:
        temperature: tau, fixed (the original's value is 0.02) or learned.
        mask_false_negatives: Leave out columns that are the same item (text and image) as the row's target, hard
            negatives included. The original keeps them.
        block_rows: Rows per block; None: as many as give at most `BLOCK_SCORES` scores. Peak memory is one block of
            (block_rows, columns); with more than one block, blocks are recomputed in the backward pass.
        bidirectional: Use the mean of the loss above and the reverse loss, the cross-entropy of every target over all
            queries (CLIP, arXiv 2103.00020, figure 3), without hard negatives. False negatives there are queries that
            are the same item as the row's query, and queries of rows with the same target, which match it too.
        matryoshka_dims: Use the mean of the loss over these leading dimensions of the embeddings, each normalised again
            (Matryoshka representations, arXiv 2205.13147). The full width counts only if it is among them. Statistics
            are those of the largest. Empty: the full width only.
        negatives: Weights of negatives, which of them are masked as likely matches, and for which rows hard negatives
            compete; applied in both directions.
        distillation: Adds a divergence from a teacher's scores, from queries to targets; None: no teacher.

    Raises:
        ValueError: A value is out of range; the message names it.

    Examples:
        >>> import torch
        >>> from vlm2vec.contrastive import ContrastiveLoss, Pairs
        >>> representations = torch.nn.functional.normalize(torch.randn(5, 8), dim=-1).requires_grad_()
        >>> pairs = Pairs(  # two rows: items 0 and 1 ask, items 2 and 3 answer, item 4 is row 0's hard negative
        ...     query=torch.tensor([0, 1]),
        ...     positive=torch.tensor([2, 3]),
        ...     negative=torch.tensor([4]),
        ...     negative_row=torch.tensor([0]),
        ... )
        >>> loss_fn = ContrastiveLoss(temperature=0.05, mask_false_negatives=True, matryoshka_dims=(4, 8))
        >>> loss, statistics = loss_fn(representations, pairs, rows=range(2))  # the rows that this rank computes
        >>> loss.backward()
        >>> representations.grad.shape, statistics.hit.shape
        (torch.Size([5, 8]), torch.Size([2]))
    """

    def __init__(
        self,
        temperature: float | LearnedTemperature = 0.02,
        mask_false_negatives: bool = False,
        block_rows: int | None = None,
        *,
        bidirectional: bool = False,
        matryoshka_dims: Sequence[int] = (),
        negatives: Negatives | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        if not isinstance(temperature, LearnedTemperature) and not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, not {temperature}")
        if block_rows is not None and block_rows < 1:
            raise ValueError(f"block_rows must be at least 1, not {block_rows}")
        for dim in matryoshka_dims:
            if dim < 1 or list(matryoshka_dims).count(dim) > 1:
                raise ValueError(f"matryoshka_dims must be positive and distinct, not {dim} in {(*matryoshka_dims,)}")
        self.temperature = temperature
        self.mask_false_negatives = mask_false_negatives
        self.block_rows = block_rows
        self.bidirectional = bidirectional
        self.matryoshka_dims = tuple(sorted(matryoshka_dims))
        self.negatives = negatives or Negatives()
        self.distillation = distillation

    def __call__(self, representations: Tensor, pairs: Pairs, rows: range) -> tuple[Tensor, RowStatistics]:
        """Computes the loss of some rows of the global batch.

        Args:
            representations: Embeddings of all items, unit rows, shape (items, dimension).
            pairs: Rows of the global batch, as indices into `representations`, on the same device.
            rows: Rows to compute: a contiguous range in [0, batch).

        Returns:
            The sum over `rows` divided by the global batch (a scalar with gradient), and the rows' statistics.

        Raises:
            ValueError: A Matryoshka dimension is larger than the embeddings, or several temperatures are learned and
                `pairs` has no temperature groups.
        """
        width = representations.shape[1]
        dims = self.matryoshka_dims or (width,)
        if dims[-1] > width:
            raise ValueError(f"matryoshka_dims: {dims[-1]} exceeds the embeddings' {width} dimensions")
        total = representations.new_zeros((), dtype=torch.float32)
        with torch.autocast(representations.device.type, enabled=False):
            temperature = self._current_temperature(pairs)
            for dim in dims:
                unit = representations.float()  # (items, width) unit rows; shortened ones must be normalised again
                unit = unit if dim == width else F.normalize(unit[:, :dim], dim=-1)
                loss, statistics = self._at_width(unit, pairs, rows, temperature)
                total = total + loss
        return total / len(dims), statistics

    def _current_temperature(self, pairs: Pairs) -> float | Tensor:
        """One temperature for all rows, or one per row, shape (batch, 1)."""
        if not isinstance(self.temperature, LearnedTemperature):
            return self.temperature
        temperature = self.temperature.log_temperature.exp()
        if temperature.dim() == 0:
            return temperature
        if pairs.temperature_group is None:
            raise ValueError("several temperatures are learned: pairs must have a temperature_group")
        return temperature.index_select(0, pairs.temperature_group)[:, None]

    def _at_width(
        self, representations: Tensor, pairs: Pairs, rows: range, temperature: float | Tensor
    ) -> tuple[Tensor, RowStatistics]:
        """The rows' share of the loss, and their statistics, for float32 unit rows of one width."""
        columns = representations.index_select(0, pairs.column_items)
        all_queries = representations.index_select(0, pairs.query) if self.bidirectional else None
        block_rows = self.block_rows or max(1, BLOCK_SCORES // len(columns))
        # With several blocks, keeping every block's scores for the backward pass would take the memory of all at once.
        recompute = len(rows) > block_rows or self.bidirectional or len(self.matryoshka_dims) > 1
        total = representations.new_zeros(())
        statistics: list[RowStatistics] = []
        # At least one block: a rank without rows must still join the backward pass's collectives.
        for start in range(rows.start, max(rows.stop, rows.start + 1), block_rows):
            block = slice(start, min(start + block_rows, rows.stop))
            own = torch.arange(block.start, block.stop, device=representations.device)
            queries = representations.index_select(0, pairs.query[block])
            of_block = temperature[block] if isinstance(temperature, Tensor) and temperature.dim() else temperature
            losses, extra, figures = _run(recompute, self._query_to_target, queries, columns, pairs, own, of_block)
            statistics.append(figures)
            if all_queries is not None:
                reverse = _run(recompute, self._target_to_query, columns, all_queries, pairs, own, of_block)
                losses = (losses + reverse) / 2
            total = total + losses.sum()
            if extra is not None:
                total = total + extra.sum()
        return total / len(pairs.query), _concatenate(statistics)

    def _query_to_target(
        self, queries: Tensor, columns: Tensor, pairs: Pairs, own: Tensor, temperature: float | Tensor
    ) -> tuple[Tensor, Tensor | None, RowStatistics]:
        """Losses (rows,), distillation losses and statistics of a block of rows, whose targets are columns `own`."""
        similarity = queries @ columns.T  # (rows, columns)
        column_items = pairs.column_items
        same_item = column_items[own, None] == column_items
        foreign = self.negatives.foreign(pairs, own)
        masked = masked_similar = torch.zeros_like(own)
        logits = similarity / temperature
        divergence = None if self.distillation is None else self.distillation.divergence(logits, pairs, own)
        logits = self.negatives.weighted(logits, similarity, own)
        left_out = foreign
        if self.mask_false_negatives:
            left_out, masked = _more_left_out(same_item, left_out, own)
        similar = self.negatives.similar_columns(similarity, columns, pairs, own)
        if similar is not None:
            left_out, masked_similar = _more_left_out(similar, left_out, own)
        losses = _cross_entropy(logits, left_out, own)
        with torch.no_grad():
            positive = similarity.gather(1, own[:, None]).squeeze(1)
            is_other = ~(same_item if foreign is None else same_item | foreign)
            hardest = similarity.masked_fill(~is_other, -math.inf).amax(dim=1)
            mean = similarity.masked_fill(~is_other, 0.0).sum(dim=1) / is_other.sum(dim=1).clamp(min=1)
            statistics = RowStatistics(
                loss=losses.detach(),
                # A tie is no hit, so that a collapsed encoder, whose similarities are all equal, does not look perfect.
                hit=positive > hardest,
                positive_similarity=positive.detach(),
                hardest_negative_similarity=hardest,
                mean_negative_similarity=mean,
                masked=masked,
                masked_similar=masked_similar,
                divergence=torch.zeros_like(positive) if divergence is None else divergence.detach(),
            )
        if divergence is None or self.distillation is None:
            return losses, None, statistics
        return losses, self.distillation.weight * divergence, statistics

    def _target_to_query(
        self, columns: Tensor, queries: Tensor, pairs: Pairs, own: Tensor, temperature: float | Tensor
    ) -> Tensor:
        """Losses (rows,) of one block of rows in the reverse direction; their queries are the columns `own`."""
        targets = columns[: len(queries)]
        similarity = targets.index_select(0, own) @ queries.T
        logits = self.negatives.weighted(similarity / temperature, similarity, own)
        left_out = None
        if self.mask_false_negatives:
            same_query = pairs.query[own, None] == pairs.query
            same_target = pairs.positive[own, None] == pairs.positive
            left_out, _ = _more_left_out(same_query | same_target, left_out, own)
        similar = self.negatives.similar_queries(similarity, queries, targets, pairs, own)
        if similar is not None:
            left_out, _ = _more_left_out(similar, left_out, own)
        return _cross_entropy(logits, left_out, own)


def _more_left_out(more: Tensor, before: Tensor | None, own: Tensor) -> tuple[Tensor, Tensor]:
    """Adds columns to those left out, but never a row's own match; also returns the number of new ones per row."""
    more = more.scatter(1, own[:, None], False)
    if before is None:
        return more, more.sum(dim=1)
    return more | before, (more & ~before).sum(dim=1)


def _cross_entropy(logits: Tensor, left_out: Tensor | None, own: Tensor) -> Tensor:
    logits = logits if left_out is None else logits.masked_fill(left_out, -math.inf)
    return F.cross_entropy(logits, own, reduction="none")


def _run(recompute: bool, function: Callable[..., Result], *arguments: object) -> Result:
    """Calls a function; with `recompute`, keeps only its arguments and calls it again in the backward pass."""
    if not recompute:
        return function(*arguments)
    result: Result = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result


def _concatenate(blocks: Sequence[RowStatistics]) -> RowStatistics:
    return RowStatistics(
        **{each.name: torch.cat([getattr(block, each.name) for block in blocks]) for each in fields(RowStatistics)}
    )
