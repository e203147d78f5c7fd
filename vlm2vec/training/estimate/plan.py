"""A run's plan: memory of a rank, traffic and FLOPs of a step, from the arguments and the cluster alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vlm2vec.contrastive import has_dropout
from vlm2vec.training.arguments import DEFAULT_CHUNK_TOKENS, NO_GRAD_FACTOR, RunArguments
from vlm2vec.training.estimate.meta import ChunkShape, MetaModel, PassCost
from vlm2vec.training.estimate.states import ModelSize, StateMemory, ZeroSettings, state_memory
from vlm2vec.training.estimate.traffic import Collective, EngineCalls, collectives
from vlm2vec.training.graph_memory import LEFT_FREE

GIB = 2**30
# Blocks of scores (rows x columns, float32) that the loss and its backward pass hold at a time; 5.5 are measured in
# tests/training/test_estimate.py.
_SCORE_BLOCKS = 6
# Copies of all ranks' embeddings that live in the loss: gathered, its buffer, queries and targets picked from it, and
# the gradients of these.
_GATHERED_COPIES = 6
_LOCAL_COPIES = 4
_FLOAT32 = 4


@dataclass(frozen=True)
class Cluster:
    """Where the run is to run, and what is assumed of it.

    Attributes:
        gpus: Of a node.
        nodes: How many.
        gpu_memory: Bytes of a GPU.
        peak_flops: FLOP/s of a GPU.
        utilization: The share of it that is reached.
        gpu_bandwidth: Bytes a second between GPUs of a node, each way and GPU.
        node_bandwidth: Bytes a second between nodes, each way and node.
    """

    gpus: int
    nodes: int
    gpu_memory: float
    peak_flops: float
    utilization: float
    gpu_bandwidth: float
    node_bandwidth: float

    @property
    def num_ranks(self) -> int:
        """One a GPU."""
        return self.gpus * self.nodes

    @property
    def usable_memory(self) -> float:
        """A tenth stays free for fragmentation and what libraries take, as in `--keep_graphs auto`."""
        return (1 - LEFT_FREE) * self.gpu_memory

    @property
    def ring_bandwidth(self) -> float:
        """Of a ring through all ranks: its slowest link, which is a node's where there are several."""
        return self.gpu_bandwidth if self.nodes == 1 else min(self.gpu_bandwidth, self.node_bandwidth)


@dataclass(frozen=True)
class Workload:
    """What a global batch is assumed to hold.

    Attributes:
        pictures_per_pair: Items of a pair that have a picture, 0 to 2.
        text_tokens: Tokens of an item's text.
    """

    pictures_per_pair: float
    text_tokens: int


@dataclass(frozen=True)
class Memory:
    """One rank's memory with one ZeRO variant, in bytes.

    Attributes:
        zero: The variant.
        state: What DeepSpeed holds.
        chunk: The most that a chunk of pass 2 takes, its crops included.
        loss: Embeddings and scores of the loss.
        moments: All that lives at a time, by moment of the step.
        chunk_tokens: The largest `--chunk_tokens` that fits; 0 if none does.
    """

    zero: ZeroSettings
    state: StateMemory
    chunk: float
    loss: float
    moments: dict[str, float]
    chunk_tokens: int

    @property
    def peak(self) -> float:
        """The most that lives at a time."""
        return max(self.moments.values())


class Plan:
    """Everything that can be said before a run, without weights or accelerator.

    Args:
        model: The run's encoder on the meta device.
        zero: The engine's settings.
        cluster: The ranks.
        workload: The batch.
    """

    def __init__(self, model: MetaModel, zero: ZeroSettings, cluster: Cluster, workload: Workload) -> None:
        self.model = model
        self.arguments: RunArguments = model.arguments
        self.zero = zero
        self.cluster = cluster
        self.workload = workload
        self.pairs = self.arguments.global_batch_size(cluster.num_ranks)
        self.width = int(model.config.hidden_size)
        picture = model.images.layout(model.images.crop_size, model.images.crop_size)
        self.picture_tokens, self.crops = picture.num_tokens + workload.text_tokens, picture.num_crops

    @cached_property
    def size(self) -> ModelSize:
        """The parameters."""
        return self.model.size()

    @property
    def chunk_tokens(self) -> int:
        """The token budget of a chunk with a graph."""
        return self.arguments.training.chunk_tokens or DEFAULT_CHUNK_TOKENS

    @cached_property
    def no_grad_factor(self) -> float:
        """Tokens of a chunk without a graph to those of one with."""
        if has_dropout(self.model.encoder((2, 3), False)):
            return 1.0
        chosen = self.arguments.training.no_grad_chunk_tokens
        return chosen / self.chunk_tokens if chosen else float(NO_GRAD_FACTOR)

    def rows(self, width: int, factor: float = 1.0, is_query: bool = True) -> int:
        """Items of one width in a chunk."""
        training = self.arguments.training
        fixed = training.gc_q_chunk_size if is_query else training.gc_p_chunk_size
        return fixed or max(1, int(factor * self.chunk_tokens) // width)

    def pictures(self, rows: int) -> ChunkShape:
        """A chunk of so many pictures with all their crops, the most expensive kind."""
        return ChunkShape(rows, self.picture_tokens, self.crops)

    def chunk_cost(self, checkpointing: bool) -> PassCost:
        """The largest chunk forward and backward."""
        return self.model.cost(self.pictures(self.rows(self.picture_tokens)), True, checkpointing)
