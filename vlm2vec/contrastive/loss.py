"""The contrastive loss over one global batch: local rows against all columns, in row blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Pairs:
    """Which representations form the rows of a global batch.

    Identical items share one representation, so two rows with the same positive carry the same index in `positive`.

    Attributes:
        query: Row of the representation matrix that holds each pair's query, shape (batch,), int64.
        positive: The same for each pair's target, shape (batch,), int64.
    """

    query: Tensor
    positive: Tensor

    def to(self, device: torch.device) -> Pairs:
        """The same pairs on `device`."""
        return Pairs(self.query.to(device, non_blocking=True), self.positive.to(device, non_blocking=True))


@dataclass(frozen=True)
class RowStatistics:
    """What is worth watching of each local row; detached, shape (local rows,) each."""

    loss: Tensor
    hit: Tensor
    positive_similarity: Tensor
    hardest_negative_similarity: Tensor
    masked: Tensor


class ContrastiveLoss:
    r"""Cross-entropy of every query over the targets of the whole global batch (InfoNCE).

    $$ L = -\frac{1}{B} \sum_i \log \frac{e^{s(q_i, t_i) / \tau}}{\sum_j e^{s(q_i, t_j) / \tau}} $$

    with cosine similarity s on unit rows, B the global batch, tau the temperature (VLM2Vec, arXiv 2410.05160, eq. 1;
    one direction and labels on the diagonal, as in the original). Computed in fp32 whatever the inputs' dtype.

    Each rank computes the rows it was dealt and divides by the *global* batch, so the ranks' losses add up to the
    loss, and the sum of their gradients is its gradient, whoever holds which row.

    Args:
        temperature: tau; the original's value is 0.02.
        mask_false_negatives: Leave out columns whose target is the same item (text and picture) as the row's own
            target. The original keeps them.
        block_rows: Rows per block. Peak memory is one block of (block_rows, batch) scores; blocks are recomputed in
            the backward pass.
    """

    def __init__(self, temperature: float = 0.02, mask_false_negatives: bool = False, block_rows: int = 1024) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        if block_rows < 1:
            raise ValueError(f"block_rows must be at least 1, not {block_rows}")
        self.temperature = temperature
        self.mask_false_negatives = mask_false_negatives
        self.block_rows = block_rows

    def __call__(self, representations: Tensor, pairs: Pairs, rows: range) -> tuple[Tensor, RowStatistics]:
        """The loss of some rows of the global batch.

        Args:
            representations: All items' embeddings, unit rows, shape (items, dimension).
            pairs: The rows of the global batch, as indices into `representations`.
            rows: The rows to compute: a contiguous range in [0, batch).

        Returns:
            The sum over `rows` divided by the global batch (a scalar with gradient), and the rows' statistics.
        """
        with torch.autocast(representations.device.type, enabled=False):
            return self._rows(representations, pairs, rows)

    def _rows(self, representations: Tensor, pairs: Pairs, rows: range) -> tuple[Tensor, RowStatistics]:
        batch = pairs.query.shape[0]
        columns = representations.float().index_select(0, pairs.positive)
        total = columns[:0].sum()  # zero with a graph: a rank without rows still takes part in the backward collective
        statistics: list[RowStatistics] = []
        for start in range(rows.start, rows.stop, self.block_rows):
            block = range(start, min(start + self.block_rows, rows.stop))
            queries = representations.float().index_select(0, pairs.query[block.start : block.stop])
            if len(rows) <= self.block_rows:
                losses, block_statistics = self._block(queries, columns, pairs.positive, block)
            else:
                losses, block_statistics = checkpoint(
                    self._block, queries, columns, pairs.positive, block, use_reentrant=False, preserve_rng_state=False
                )
            total = total + losses.sum()
            statistics.append(block_statistics)
        return total / batch, _concatenate(statistics, columns)

    def _block(self, queries: Tensor, columns: Tensor, positive: Tensor, rows: range) -> tuple[Tensor, RowStatistics]:
        """Losses (rows,) and statistics of one block of rows."""
        similarity = queries @ columns.T
        own_column = torch.arange(rows.start, rows.stop, device=queries.device)
        same_target = positive[rows.start : rows.stop, None] == positive[None, :]
        others_with_same_target = same_target.scatter(1, own_column[:, None], False)
        logits = similarity / self.temperature
        if self.mask_false_negatives:
            logits = logits.masked_fill(others_with_same_target, float("-inf"))
        losses = F.cross_entropy(logits, own_column, reduction="none")
        with torch.no_grad():
            own = similarity.gather(1, own_column[:, None]).squeeze(1)
            hardest = similarity.masked_fill(same_target, float("-inf")).amax(dim=1)
            masked = others_with_same_target.sum(dim=1) if self.mask_false_negatives else torch.zeros_like(own_column)
            # A tie is no hit: a collapsed encoder, for which all similarities are equal, must not look perfect.
            statistics = RowStatistics(losses.detach(), own > hardest, own, hardest, masked)
        return losses, statistics


def _concatenate(blocks: list[RowStatistics], like: Tensor) -> RowStatistics:
    if not blocks:
        empty = like.new_zeros((0,))
        return RowStatistics(empty, empty.bool(), empty, empty, empty.long())
    return RowStatistics(
        loss=torch.cat([block.loss for block in blocks]),
        hit=torch.cat([block.hit for block in blocks]),
        positive_similarity=torch.cat([block.positive_similarity for block in blocks]),
        hardest_negative_similarity=torch.cat([block.hardest_negative_similarity for block in blocks]),
        masked=torch.cat([block.masked for block in blocks]),
    )
