"""Gathers the representations of all ranks, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Makes a context around each collective, for example to measure it.
Around = Callable[[], AbstractContextManager[None]]


def is_distributed(group: dist.ProcessGroup | None = None) -> bool:
    """Whether there is more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


class _GatherRows(torch.autograd.Function):
    """All-gather with different numbers of rows per rank; backward sums all ranks' gradients of the local rows.

    Collectives need equal sizes, so rows are padded to the largest count. The backward pass is a reduce-scatter,
    because every rank has a gradient for all rows and needs the sum for its rows.
    """

    @staticmethod
    def forward(
        ctx: Any, local: Tensor, counts: tuple[int, ...], group: dist.ProcessGroup | None, around: Around
    ) -> Tensor:
        ctx.counts, ctx.group, ctx.around = counts, group, around
        most = max(counts)
        padded = local.new_zeros((most, local.shape[1]))
        padded[: local.shape[0]] = local
        gathered = local.new_empty((len(counts) * most, local.shape[1]))
        with around():
            dist.all_gather_into_tensor(gathered, padded, group=group)
        blocks = gathered.view(len(counts), most, -1)  # (ranks, most, dimension), padding included
        return torch.cat([blocks[rank, :count] for rank, count in enumerate(counts)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        counts, group = ctx.counts, ctx.group
        most = max(counts)
        padded = gradient.new_zeros((len(counts), most, gradient.shape[1]))
        for rank, block in enumerate(torch.split(gradient, list(counts))):
            padded[rank, : block.shape[0]] = block  # the padding in between must be zero in the sum
        own = gradient.new_empty((most, gradient.shape[1]))
        with ctx.around():
            dist.reduce_scatter_tensor(own, padded.view(len(counts) * most, -1), op=dist.ReduceOp.SUM, group=group)
        return own[: counts[dist.get_rank(group)]], None, None, None


def gather_rows(
    local: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None = None, around: Around = nullcontext
) -> Tensor:
    """Concatenates every rank's rows in the order of ranks.

    Args:
        local: This rank's rows, shape (counts[rank], dimension).
        counts: Number of rows of every rank, the same on all ranks.
        group: The process group; the default group if None.
        around: Makes a context for each of the two collectives.

    Returns:
        All rows, shape (sum(counts), dimension). The gradient of a row flows back to its rank, summed over all ranks.
        Without a process group, or with one rank, `local` itself.

    Raises:
        ValueError: `local` does not have the announced number of rows.
    """
    rank = dist.get_rank(group) if is_distributed(group) else 0
    if local.shape[0] != counts[rank]:
        raise ValueError(f"rank {rank}: expected {counts[rank]} rows, got {local.shape[0]}")
    if not is_distributed(group):
        return local
    rows: Tensor = _GatherRows.apply(local, tuple(counts), group, around)  # type: ignore[no-untyped-call]
    return rows
