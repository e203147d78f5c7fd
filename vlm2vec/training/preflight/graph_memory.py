"""How many chunks may keep their graph from pass 1: measured once, before the first step."""

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

# A backward pass holds more than its graph: the layer that runs backward, recomputed activations, their gradients.
_GRAPHS_A_BACKWARD_TAKES = 2
# Of the device's memory; what fragments, what libraries take for themselves, and items longer than the budget.
LEFT_FREE = 0.1
_BYTES_OF_A_GRADIENT = 4


@dataclass(frozen=True)
class DeviceMemory:
    """A device's memory in bytes, read from counters on the host.

    Attributes:
        allocated: In tensors.
        free: What tensors could still get.
        total: All there is.
    """

    allocated: int
    free: int
    total: int

    @classmethod
    def now(cls) -> DeviceMemory:
        """This rank's accelerator."""
        # The driver's figure: DeepSpeed's own leaves out what the cache holds or not, depending on pynvml.
        free, total = torch.cuda.mem_get_info()
        allocated = torch.cuda.memory_allocated()
        return cls(allocated, free + torch.cuda.memory_reserved() - allocated, total)


def chunk_sizes(
    settings: Chunking, step: CachedStep, inputs: ItemEncoderInputs, kept_before: int | None = None
) -> ChunkSizes:
    """How items become chunks; kept graphs are decided here, by a look at the device's memory.

    Args:
        settings: The run's.
        step: Whose engine runs the chunks.
        inputs: Makes the chunk that is measured.
        kept_before: What `--keep_graphs auto` was before a resume on the same ranks with the same chunks.

    Raises:
        InputError: A budget without a graph that dropout does not allow.
    """
    no_grad_tokens = settings.no_grad_budget(has_dropout(step.engine.module))
    if settings.keep_graphs is not None:
        keep_graphs = settings.keep_graphs
    elif kept_before is not None:
        keep_graphs = kept_before
    elif step.engine.device.type == "cpu":
        keep_graphs = 1  # a process's memory on the host says nothing about its tensors
    else:
        keep_graphs = graphs_that_fit(step.engine, step.model_call, largest_chunk(inputs, settings.packing))
    return ChunkSizes(settings.packing, no_grad_tokens, keep_graphs)


def graphs_that_fit(
    engine: Any,
    encode: Callable[[Any, dict[str, Any]], Tensor],
    chunk: Chunk,
    memory: Callable[[], DeviceMemory] = DeviceMemory.now,
) -> int:
    """How many graphs of `chunk` the ranks can hold at a time; the same number on every rank, at least 1.

    One graph costs nothing, as pass 2 holds one anyway. More of them save a forward pass each and change nothing else.
    Draws random numbers where the encoder has dropout: seed afterwards.

    Args:
        engine: The DeepSpeed engine; nothing is sent backward, so it holds no gradient afterwards.
        encode: One engine call, `CachedStep.model_call`.
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
    """A chunk as large as packing makes them: images that take the most, as many as the budget holds.

    Args:
        inputs: Makes the chunk.
        packing: The budget.
        part: Of so many parts of the images only one, but at least one image.
    """
    item = inputs.largest_item()
    if isinstance(packing, FixedCounts):
        count = max(packing.query_chunk_size, packing.positive_chunk_size)
    else:
        count = max(1, packing.chunk_tokens // inputs.budget_tokens(item))
    return inputs.chunk([item] * max(1, count // part))
