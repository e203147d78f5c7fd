"""Estimates memory per rank, and traffic and FLOPs per step, from the arguments and the hardware alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from vlm2vec.contrastive import has_dropout
from vlm2vec.inputs.packing import FixedCounts, TokenBudget
from vlm2vec.plan.assumptions import Hardware, Workload
from vlm2vec.plan.meta import MetaModel
from vlm2vec.plan.passes import ChunkShape, PassCost
from vlm2vec.plan.states import ModelSize, StateMemory, ZeroSettings, state_memory
from vlm2vec.plan.traffic import Collective, EngineCalls, collectives
from vlm2vec.training.flags.run import RunSettings
from vlm2vec.training.flags.training import DEFAULT_CHUNK_TOKENS

GIB = 2**30
# Blocks of scores (rows x columns, float32) that the loss and its backward pass hold at a time: 5.5 with
# recomputation, which tests/plan/test_plan.py checks.
_SCORE_BLOCKS = 6
# Copies of all ranks' embeddings that live in the loss: gathered, its buffer, queries and targets selected from it,
# and their gradients.
_GATHERED_COPIES = 6
_LOCAL_COPIES = 4
_FLOAT32 = 4
# How often ZeRO-3 gathers a layer in a call with backward: without and with recomputation of layers (measured: 1.8
# with adapters and no recomputation, 2.4 with it, tests/distributed/test_estimate.py).
FETCHES, MOST_FETCHES = 2, 3
# `--chunk_tokens` is proposed in multiples of this.
_ROUND = 1024


@dataclass(frozen=True)
class Memory:
    """One rank's memory with one ZeRO variant, in bytes.

    Attributes:
        zero: The variant.
        state: Weights, gradients, optimizer and buffers that DeepSpeed holds.
        chunk: Peak of a chunk of pass 2, its pixels included.
        loss: Embeddings and scores of the loss.
        moments: Memory in use in each part of a step, by its name.
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
        """Peak memory of a step."""
        return max(self.moments.values())


class RunPlan:
    """Estimates that need neither weights nor an accelerator.

    Args:
        model: The run's encoder on the meta device.
        settings: The run's resolved settings.
        zero: The engine's ZeRO settings.
        cluster: The hardware.
        workload: Assumptions about the global batch.

    Attributes:
        pairs: Pairs of a global batch.
        negatives: Hard negatives per row: those in the data and the mined ones.
        image_size: Width and height of every image in pixels.
        image_tokens: Tokens of an item with images, its text included.
        vision_units: Vision units of such an item.
        budget_tokens: Share of a chunk's token budget that such an item takes.

    Raises:
        InputError: The model family cannot cut images of the workload's size.
    """

    def __init__(
        self, model: MetaModel, settings: RunSettings, zero: ZeroSettings, cluster: Hardware, workload: Workload
    ) -> None:
        self.model = model
        self.settings = settings
        self.zero = zero
        self.cluster = cluster
        self.workload = workload
        self.pairs = settings.cluster.global_batch_size
        self.negatives = settings.data.negatives_a_row(workload.hard_negatives_per_row)
        self.width = model.smallest.hidden_size
        processor = model.processor
        self.image_size = workload.image_size or processor.planned_image_size
        images = workload.images_per_item
        self.image_tokens = images * processor.num_image_tokens(*self.image_size) + workload.text_tokens
        self.vision_units = images * processor.num_vision_units(*self.image_size)
        # Vision units count as tokens of the budget, see `ItemProcessor.tokens_per_vision_unit`.
        self.budget_tokens = self.image_tokens + math.ceil(processor.tokens_per_vision_unit * self.vision_units)

    @cached_property
    def size(self) -> ModelSize:
        """Parameters of the model."""
        return self.model.size()

    @property
    def items(self) -> int:
        """Items of a global batch, if all are distinct."""
        return self.pairs * (2 + self.negatives)

    @property
    def columns(self) -> int:
        """Columns of the similarity matrix: the targets and the hard negatives of all rows."""
        return self.pairs * (1 + self.negatives)

    @property
    def chunk_tokens(self) -> int:
        """The token budget of a chunk with a graph."""
        packing = self.settings.chunking.packing
        return packing.chunk_tokens if isinstance(packing, TokenBudget) else DEFAULT_CHUNK_TOKENS

    @cached_property
    def no_grad_factor(self) -> float:
        """Token budget of a chunk without a graph, relative to one with a graph."""
        if has_dropout(self.model.smallest):
            return 1.0
        budget = self.settings.chunking.no_grad_budget(has_dropout=False)
        return 1.0 if budget is None else budget / self.chunk_tokens

    def image_rows(self, factor: float = 1.0) -> int:
        """Items with images in a chunk whose budget is `factor` times that of a chunk with a graph."""
        packing = self.settings.chunking.packing
        if isinstance(packing, FixedCounts):
            return packing.query_chunk_size
        return self._fitting(self.budget_tokens, packing, factor)

    def text_rows(self, factor: float = 1.0) -> int:
        """Text items in a chunk, see `image_rows`."""
        packing = self.settings.chunking.packing
        if isinstance(packing, FixedCounts):
            return packing.positive_chunk_size
        return self._fitting(self.workload.text_tokens, packing, factor)

    @staticmethod
    def _fitting(tokens: int, packing: TokenBudget, factor: float) -> int:
        return max(1, int(factor * packing.chunk_tokens) // tokens)

    def images(self, rows: int) -> ChunkShape:
        """A chunk of items with images, the most expensive kind."""
        return ChunkShape(rows, self.image_tokens, (self.image_size,) * self.workload.images_per_item)

    def chunk_cost(self, checkpointing: bool) -> PassCost:
        """Cost of the largest chunk, forward and backward."""
        return self.model.cost(self.images(self.image_rows()), True, checkpointing)

    @property
    def encode_rows(self) -> int:
        """Items with images in the largest chunk of pass 1."""
        return max(1, int(self.image_rows() * self.no_grad_factor))

    @property
    def encode_cost(self) -> PassCost:
        """Cost of the largest chunk of pass 1."""
        return self._growth.encode

    def memories(self) -> list[Memory]:
        """Memory of each ZeRO variant, the engine's settings among them, see `ZeroSettings.variants`."""
        return [self.memory(zero) for zero in self.zero.variants()]

    def memory(self, zero: ZeroSettings) -> Memory:
        """One rank's memory with given ZeRO settings."""
        state = state_memory(self.size, zero, self.cluster.num_ranks)
        held = state.in_pass
        at_work = self._activations(self._growth.rows, self.keep_graphs)
        moments = {moment: held + size for moment, size in at_work.items()}
        moments["update"] = state.in_update
        largest = self._largest_chunk(held) if moments["update"] <= self.cluster.usable_memory else 0
        return Memory(zero, state, self._growth.one.peak, self.loss_bytes, moments, largest)

    @cached_property
    def loss_bytes(self) -> float:
        """Bytes of all ranks' embeddings and a block of scores, including what the loss's backward pass needs."""
        items, ranks = self.items, self.cluster.num_ranks
        embeddings = (_GATHERED_COPIES * items + _LOCAL_COPIES * math.ceil(items / ranks)) * self.width * _FLOAT32
        rows = self.settings.loss.rows_of_a_block(self.columns, math.ceil(self.pairs / ranks))
        return float(embeddings + _SCORE_BLOCKS * rows * self.columns * _FLOAT32)

    @property
    def keep_graphs(self) -> int:
        """Graphs kept from pass 1 to pass 2; `auto` counts as one, which costs no memory in pass 2."""
        asked = self.settings.chunking.keep_graphs
        return 1 if asked is None else asked

    def graphs_that_fit(self, zero: ZeroSettings) -> int:
        """Graphs that fit from pass 1 to pass 2, at most one per chunk with images; 0 if none fits."""
        held = state_memory(self.size, zero, self.cluster.num_ranks).in_pass
        for kept in range(self.calls.repeat_with_images, 0, -1):
            if held + max(self._activations(self._growth.rows, kept).values()) <= self.cluster.usable_memory:
                return kept
        return 0

    def seconds_saved(self, graphs: int) -> float:
        """Computing time that kept graphs save per step: one forward pass of pass 1 each."""
        return graphs * self._growth.one.forward_flops / (self.cluster.peak_flops * self.cluster.utilization)

    @cached_property
    def calls(self) -> EngineCalls:
        """Engine calls per step on every rank."""
        images, texts = self.items_a_rank

        def needed(factor: float) -> tuple[int, int]:
            with_images = math.ceil(images / self.image_rows(factor))
            return with_images + math.ceil(texts / self.text_rows(factor)), with_images

        return EngineCalls(*needed(self.no_grad_factor), *needed(1.0))

    @property
    def items_a_rank(self) -> tuple[float, float]:
        """Items per rank with and without images, if all are distinct; a hard negative counts as half a pair."""
        images = self.items / 2 * self.workload.images_per_pair / self.cluster.num_ranks
        return images, self.items / self.cluster.num_ranks - images

    def traffic(self, zero: ZeroSettings) -> list[Collective]:
        """All collectives of a step."""
        fetches = MOST_FETCHES if self.settings.encoder.gradient_checkpointing else FETCHES
        return collectives(self.size, zero, self.cluster.num_ranks, self.items, self.width, self.calls, fetches)

    @cached_property
    def flops(self) -> tuple[float, float]:
        """FLOPs of a rank's step, and those of one plain forward and backward pass over the same items.

        The plain pass recomputes nothing and, with DoRA, has no second matrix product, which only dropout needs.
        """
        checkpointing, plain = self.settings.encoder.gradient_checkpointing, self.model.without_dropout()
        run = useful = 0.0
        shapes = (self.images(self._growth.rows), ChunkShape(self.text_rows(), self.workload.text_tokens))
        for items, shape in zip(self.items_a_rank, shapes, strict=True):
            cost = self.model.cost(shape, True, checkpointing)
            run += items / shape.rows * (cost.forward_flops + sum(cost.flops))
            useful += items / shape.rows * sum(plain.cost(shape, True).flops)
        return run, useful

    def seconds(self, zero: ZeroSettings) -> tuple[float, float]:
        """Seconds per step for computing and for transfers, at the assumed speeds of the hardware."""
        cluster = self.cluster
        sent = sum(each.sent(cluster.num_ranks) for each in self.traffic(zero))
        return self.flops[0] / (cluster.peak_flops * cluster.utilization), sent / cluster.ring_bandwidth

    @cached_property
    def _growth(self) -> _Growth:
        rows = self.image_rows()
        checkpointing = self.settings.encoder.gradient_checkpointing
        encode = self.model.cost(self.images(self.encode_rows), False)
        one, two = (self.model.cost(self.images(number), True, checkpointing) for number in (rows, 2 * rows))
        return _Growth(rows, encode, one, two)

    def _activations(self, rows: float, kept: int) -> dict[str, float]:
        """Bytes besides the engine's state in each part of a step, for `rows` images per chunk and `kept` graphs."""
        cost = self._growth.repeat(rows)
        embeddings = float(2 * math.ceil(self.items / self.cluster.num_ranks) * self.width * _FLOAT32)
        return {
            "pass 1": embeddings + max(self._growth.encode_peak(rows), cost.saved * kept),
            "loss": self.loss_bytes + cost.saved * kept,
            "pass 2": embeddings + cost.saved * max(0, kept - 1) + cost.peak,
        }

    def _largest_chunk(self, held: float) -> int:
        """The largest `--chunk_tokens` that fits in every part of a step, by bisection: memory grows with it."""
        fits = [0, 2**16]
        while fits[1] - fits[0] > 1:
            middle = sum(fits) // 2
            too_much = held + max(self._activations(middle, self.keep_graphs).values()) > self.cluster.usable_memory
            fits[1 if too_much else 0] = middle
        tokens = fits[0] * self.budget_tokens
        return tokens - tokens % _ROUND if tokens > _ROUND else tokens


@dataclass(frozen=True)
class _Growth:
    """How the largest chunk's cost grows with the number of its images.

    Attributes:
        rows: Images of a chunk with a graph.
        encode: Cost of the chunk of pass 1; assumed to grow in proportion.
        one: Cost of the chunk of pass 2.
        two: Cost of a chunk with twice as many images; memory is taken as linear in the number of images.
    """

    rows: int
    encode: PassCost
    one: PassCost
    two: PassCost

    def encode_peak(self, rows: float) -> float:
        """Peak of pass 1 if chunks of pass 2 have `rows` images."""
        return self.encode.peak * rows / self.rows

    def repeat(self, rows: float) -> PassCost:
        """Cost of a chunk of pass 2 with `rows` images."""
        return self.one.grown(self.two, rows / self.rows - 1)
