"""Turns an out-of-memory error into one line with the flag to change and a value that fits."""

from __future__ import annotations

import math
import socket
from types import TracebackType

import torch
import torch.distributed as dist

from vlm2vec.batches import ChunkSizes
from vlm2vec.contrastive.watch import Part, Place
from vlm2vec.errors import InputError
from vlm2vec.inputs.packing import FixedCounts, TokenBudget
from vlm2vec.training.flags.run import RunSettings
from vlm2vec.training.preflight.rehearsal import ChunkMemory
from vlm2vec.training.watch.run_watch import RunWatch

# Factor on --chunk_tokens if a chunk should have fitted: something else took the rest of the memory.
_SMALLER = 0.75


class MemoryAdvice:
    """Context that turns running out of device memory into an `InputError` that says what to change.

    Args:
        settings: Settings of the run.
        sizes: How items become chunks.
        watch: Knows the part and place where memory ran out.

    Attributes:
        chunks: Memory of chunks, after it was measured.
    """

    def __init__(self, settings: RunSettings, sizes: ChunkSizes, watch: RunWatch) -> None:
        self._settings, self._sizes, self._watch = settings, sizes, watch
        self.chunks: ChunkMemory | None = None

    def measured(self, chunks: ChunkMemory) -> None:
        """Stores the measured memory of chunks."""
        self.chunks = chunks

    def __enter__(self) -> MemoryAdvice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and is_out_of_memory(error):
            raise InputError(
                f"rank {dist.get_rank()} on {socket.gethostname()} ran out of memory in {self._watch.where()}: "
                f"{self.remedy(self._watch.place)}"
            ) from error

    def remedy(self, place: Place) -> str:
        """Advice after running out of memory at a place."""
        sizes = self._sizes
        if sizes.keep_graphs > 1 and place.is_kept:
            return f"set --keep_graphs {sizes.keep_graphs // 2} (now {sizes.keep_graphs})"
        # In pass 1, a chunk whose graph is kept has the size of pass 2's chunks.
        is_no_grad = place.part is Part.PASS_1 and not place.is_kept
        if is_no_grad and sizes.no_grad_tokens is not None and isinstance(sizes.packing, TokenBudget):
            tokens = sizes.packing.chunk_tokens
            if sizes.no_grad_tokens > tokens:
                fitting = max(tokens, sizes.no_grad_tokens // 2)
                return f"set --no_grad_chunk_tokens {fitting} (now {sizes.no_grad_tokens})"
        if place.part in (Part.PASS_1, Part.PASS_2):
            return self._smaller_chunks()
        if place.part is Part.LOSS:
            return self._smaller_blocks()
        return (
            "the optimizer's states or gradients do not fit: use a higher ZeRO stage, more ranks, or "
            "ds_configs/zero3_offload.json"
        )

    def _smaller_blocks(self) -> str:
        settings = self._settings
        pairs, ranks = settings.cluster.global_batch_size, settings.cluster.num_ranks
        columns = pairs * (1 + settings.data.negatives_a_row())
        rows = settings.loss.rows_of_a_block(columns, math.ceil(pairs / ranks))
        if rows == 1:
            return "one row of the loss does not fit: fewer hard negatives or a smaller --global_batch_size"
        return f"set --loss_block_rows {rows // 2} (now {rows})"

    def _smaller_chunks(self) -> str:
        less = "" if self._settings.encoder.gradient_checkpointing else ", or add --gradient_checkpointing"
        if isinstance(self._sizes.packing, FixedCounts):
            counts = (self._sizes.packing.query_chunk_size, self._sizes.packing.positive_chunk_size)
            if max(counts) > 1:
                query, positive = (max(1, count // 2) for count in counts)
                now = f"(now {counts[0]} and {counts[1]})"
                return f"set --gc_q_chunk_size {query} --gc_p_chunk_size {positive} {now}{less}"
            return f"one item does not fit: use a higher ZeRO stage{less}"
        tokens = self._sizes.packing.chunk_tokens
        if self.chunks is None:
            return f"set --chunk_tokens {max(1, tokens // 2)} (now {tokens}){less}"
        fitting = self.chunks.tokens_that_fit
        if fitting >= tokens:
            fitting = int(tokens * _SMALLER)
        measured = f"{self.chunks.a_token / 2**20:.2f} MiB a token, {self.chunks.free / 2**30:.1f} GiB free"
        if fitting == 0:
            return f"no chunk fits ({measured}): use a higher ZeRO stage or ds_configs/zero3_offload.json{less}"
        return f"set --chunk_tokens {fitting} (now {tokens}; measured: {measured}){less}"


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is an out-of-memory error of the device."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__cause__
    return False
