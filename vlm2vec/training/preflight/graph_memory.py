"""Measures, before the first step, how many chunks can keep their graph from pass 1 to pass 2."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vlm2vec.batches import ChunkSizes
from vlm2vec.contrastive import CachedStep, Chunk, has_dropout
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.packing import FixedCounts, Packing
from vlm2vec.training.settings import Chunking

# A backward pass holds more than its graph: recomputed activations of the current layer, and their gradients.
_GRAPHS_A_BACKWARD_TAKES = 2
# Share of the device's memory for fragmentation, libraries, and items longer than the budget.
LEFT_FREE = 0.1
_BYTES_OF_A_GRADIENT = 4


@dataclass(frozen=True)
class DeviceMemory:
    """A device's memory in bytes, read from counters on the host.

    Attributes:
        allocated: Bytes in tensors.
        free: Bytes still available to tensors.
        total: Bytes of the device.
    """

    allocated: int
    free: int
    total: int

    @classmethod
    def now(cls) -> DeviceMemory:
        """Reads this rank's accelerator."""
        # Read from the driver: whether DeepSpeed's number includes the allocator's cache depends on pynvml.
        free, total = torch.cuda.mem_get_info()
        allocated = torch.cuda.memory_allocated()
        return cls(allocated, free + torch.cuda.memory_reserved() - allocated, total)


def chunk_sizes(
    settings: Chunking, step: CachedStep, inputs: ItemEncoderInputs, kept_before: int | None = None
) -> ChunkSizes:
    """Decides how items become chunks; measures the number of kept graphs on the device if it is `auto`.

    Args:
        settings: Chunking settings of the run.
        step: The step whose engine runs the chunks.
        inputs: Builds the chunk that is measured.
        kept_before: Result of `--keep_graphs auto` before a resume with the same ranks and chunks.

    Raises:
        InputError: A separate budget for pass 1 was asked for, which dropout does not allow.
    """
    no_grad_tokens = settings.no_grad_budget(has_dropout(step.engine.module))
    if settings.keep_graphs is not None:
        keep_graphs = settings.keep_graphs
    elif kept_before is not None:
        keep_graphs = kept_before
    elif step.engine.device.type == "cpu":
        keep_graphs = 1  # the memory of a process on the host does not tell the size of its tensors
    else:
        keep_graphs = graphs_that_fit(step.engine, step.model_call, largest_chunk(inputs, settings.packing))
    return ChunkSizes(settings.packing, no_grad_tokens, keep_graphs)


def graphs_that_fit(
    engine: Any,
    encode: Callable[[Any, dict[str, Any]], Tensor],
    chunk: Chunk,
    memory: Callable[[], DeviceMemory] = DeviceMemory.now,
) -> int:
    """Number of graphs of `chunk` that fit in memory on all ranks; the same on every rank, at least 1.

    The first graph costs nothing, because pass 2 holds one anyway. Each further graph saves one forward pass and
    changes nothing else. Draws random numbers if the encoder has dropout: seed afterwards.

    Args:
        engine: The DeepSpeed engine; it holds no gradient afterwards, because no backward pass runs.
        encode: Runs one engine call, see `CachedStep.model_call`.
        chunk: The largest chunk of a step, see `largest_chunk`.
        memory: Reads the device's memory.
    """
    arguments = chunk.arguments(engine.device, dummy_image=True)
    before = memory()
    representations = encode(engine, arguments)
    after = memory()
    del representations
    graph = max(1, after.allocated - before.allocated)
    trainable = sum(
        getattr(parameter, "ds_numel", parameter.numel())
        for parameter in engine.module.parameters()
        if parameter.requires_grad
    )
    reserve = _GRAPHS_A_BACKWARD_TAKES * graph + _BYTES_OF_A_GRADIENT * trainable + math.ceil(LEFT_FREE * after.total)
    fitting = torch.tensor([1 + max(0, (after.free - reserve) // graph)], device=engine.device)
    dist.all_reduce(fitting, op=dist.ReduceOp.MIN)
    return int(fitting)


def largest_chunk(inputs: ItemEncoderInputs, packing: Packing, part: int = 1) -> Chunk:
    """The largest chunk that packing makes: as many of the most expensive image items as the budget holds.

    Args:
        inputs: Builds the chunk.
        packing: The budget.
        part: Divides the number of images, which stays at least 1.
    """
    item = inputs.largest_item()
    if isinstance(packing, FixedCounts):
        count = max(packing.query_chunk_size, packing.positive_chunk_size)
    else:
        count = max(1, packing.chunk_tokens // inputs.budget_tokens(item))
    return inputs.chunk([item] * max(1, count // part))
