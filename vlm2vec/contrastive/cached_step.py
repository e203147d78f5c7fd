"""The cached contrastive step (GradCache, arXiv 2101.06983) on a DeepSpeed engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlm2vec.contrastive.chunk import Chunk, SlotPlan, agree_on_slots, images_first
from vlm2vec.contrastive.gather import gather_rows
from vlm2vec.contrastive.gradcache import GradCache, RandContext
from vlm2vec.contrastive.loss import ContrastiveLoss, Pairs, RowStatistics


@dataclass(frozen=True)
class StepLayout:
    """How one global batch lies on the ranks; a pure function of the batch, so all ranks hold the same.

    Attributes:
        counts: The number of items of every rank; items are numbered rank by rank.
        local_order: For each local item in that numbering, its position in this rank's chunks put end to end,
            shape (counts[rank],), int64.
        pairs: The rows of the global batch in that numbering.
        rows: The rows whose loss this rank computes.
        digest: A hash of step and items, compared over the ranks before anything runs.
    """

    counts: tuple[int, ...]
    local_order: Tensor
    pairs: Pairs
    rows: range
    digest: int


@dataclass(frozen=True)
class StepOutput:
    """Result of one cached step.

    Attributes:
        loss: This rank's share; the sum over the ranks is the loss of the global batch. A scalar on the device.
        statistics: What is worth watching of this rank's rows.
    """

    loss: Tensor
    statistics: RowStatistics


class CachedStep(GradCache):
    """One contrastive step over a global batch that need not fit into memory.

    Pass 1 encodes all chunks without a graph, the loss runs on the representations of all ranks and leaves a gradient
    for each, pass 2 encodes chunk by chunk with a graph and sends that gradient through it. The gradient that the
    engine steps with equals that of one process holding the whole batch in one graph.

    The methods carry GradCache's names (`forward_no_grad`, `build_cache`, `forward_backward`), its `RandContext`
    replays dropout in pass 2. What is added: any number of ranks (negatives are gathered with gradient), slots that
    the ranks agree on (so that ZeRO-3 never hangs), and one gradient reduction a step.

    Args:
        engine: A DeepSpeed engine around an encoder `(**inputs) -> (items, dimension)` unit rows, ZeRO-1, 2 or 3,
            `gradient_accumulation_steps` 1.
        loss_fn: The loss of a range of rows.
        padding_chunk: A minimal chunk without images; run with weight zero where another rank has more chunks.
        compute_dtype: Run the encoder under `torch.autocast` in this dtype (float32 adapters on a bf16 base).
        group: The process group of the ranks; the default group if None.
    """

    def __init__(
        self,
        engine: Any,
        loss_fn: ContrastiveLoss,
        padding_chunk: Chunk,
        compute_dtype: torch.dtype | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(models=[engine], chunk_sizes=1, loss_fn=loss_fn)
        if engine.gradient_accumulation_steps() != 1:
            raise ValueError(
                "the cached step needs gradient_accumulation_steps 1: the global batch is one step, however many "
                f"chunks it has (got {engine.gradient_accumulation_steps()})"
            )
        self.engine = engine
        self.padding_chunk = padding_chunk
        self.compute_dtype = compute_dtype
        self.group = group
        self.world_size = dist.get_world_size(group) if dist.is_initialized() else 1
        self._reduce_gradients_once = _gradient_reduction(engine)

    def cache_step(self, chunks: Sequence[Chunk], layout: StepLayout) -> StepOutput:
        """Leaves the global batch's gradient in the engine; the caller runs `engine.step()`.

        Args:
            chunks: This rank's items, in any order.
            layout: Where they belong in the global batch.

        Raises:
            RuntimeError: The ranks are not about to run the same global batch.
        """
        plan = agree_on_slots(chunks, layout.digest, self.engine.device, self.group)
        slots = _Slots(chunks, plan, self.padding_chunk)
        representations, random_states = self.forward_no_grad(self.engine, slots)
        cache, output = self.build_cache(representations, slots, layout)
        self.forward_backward(self.engine, slots, cache, random_states)
        return output

    def model_call(self, model: nn.Module, model_input: dict[str, Any]) -> Tensor:
        """One engine call: representations (items, dimension)."""
        device = self.engine.device.type
        with torch.autocast(device, self.compute_dtype) if self.compute_dtype else nullcontext():
            representations: Tensor = model(**model_input)
        return representations

    def forward_no_grad(self, model: nn.Module, model_inputs: _Slots) -> tuple[list[Tensor], list[RandContext]]:
        """Pass 1: representations and random states of every slot, without a graph."""
        representations: list[Tensor] = []
        random_states: list[RandContext] = []
        with torch.no_grad():
            for arguments in model_inputs.arguments(self.engine.device):
                random_states.append(RandContext(*self.get_input_tensors(arguments)))
                representations.append(self.model_call(model, arguments))
        return representations, random_states

    def build_cache(
        self, representations: list[Tensor], slots: _Slots, layout: StepLayout
    ) -> tuple[list[Tensor], StepOutput]:
        """The loss over all ranks' representations, and its gradient for each slot's (items, dimension)."""
        local = torch.cat(slots.in_chunk_order(representations)).detach().requires_grad_()
        ordered = local.index_select(0, layout.local_order.to(local.device, non_blocking=True))
        everything = gather_rows(ordered, layout.counts, self.group)
        loss, statistics = self.loss_fn(everything, layout.pairs.to(local.device), layout.rows)
        loss.backward()
        assert local.grad is not None
        cache = slots.in_slot_order(local.grad, representations)
        return cache, StepOutput(loss.detach(), statistics)

    def forward_backward(
        self, model: nn.Module, model_inputs: _Slots, cached_gradients: list[Tensor], random_states: list[RandContext]
    ) -> None:
        """Pass 2: every slot with a graph, its cached gradient sent through it, one reduction over the ranks."""
        with self._reduce_gradients_once(model, len(model_inputs)) as before_backward:
            for arguments, gradient, random_state in zip(
                model_inputs.arguments(self.engine.device), cached_gradients, random_states, strict=True
            ):
                with random_state:
                    representations = self.model_call(model, arguments)
                # The engine averages gradients over the ranks; each rank holds its share of a sum.
                surrogate = torch.dot(representations.flatten(), gradient.flatten()) * self.world_size
                before_backward()
                self.engine.backward(surrogate, scale_wrt_gas=False)


class _Slots:
    """This rank's chunks laid into the slots that all ranks run."""

    def __init__(self, chunks: Sequence[Chunk], plan: SlotPlan, padding_chunk: Chunk) -> None:
        self._order = images_first(chunks)
        padding = [padding_chunk] * (plan.num_slots - len(chunks))
        self._chunks = [chunks[index] for index in self._order] + padding
        self._num_image_slots = plan.num_image_slots

    def __len__(self) -> int:
        return len(self._chunks)

    def arguments(self, device: torch.device) -> Iterator[dict[str, Any]]:
        """The encoder's keyword arguments slot by slot; a chunk is on the device only while it runs."""
        for slot, chunk in enumerate(self._chunks):
            yield chunk.arguments(device, dummy_image=slot < self._num_image_slots)

    def in_chunk_order(self, by_slot: list[Tensor]) -> list[Tensor]:
        """Drops padding and returns one tensor a chunk, in the order in which the caller gave the chunks."""
        by_chunk: list[Tensor] = [by_slot[0][:0]] * len(self._order)
        for slot, index in enumerate(self._order):
            by_chunk[index] = by_slot[slot]
        return by_chunk or [by_slot[0][:0]]

    def in_slot_order(self, rows: Tensor, by_slot: list[Tensor]) -> list[Tensor]:
        """Splits rows in chunk order and returns one tensor a slot, zeros for padding."""
        sizes = [0] * len(self._order)
        for slot, index in enumerate(self._order):
            sizes[index] = by_slot[slot].shape[0]
        split = torch.split(rows, sizes) if sizes else ()
        padding = [torch.zeros_like(tensor) for tensor in by_slot[len(self._order) :]]
        return [split[index] for index in self._order] + padding


BeforeBackward = Callable[[], None]


def _gradient_reduction(engine: Any) -> Callable[[Any, int], Any]:
    """The way to reduce gradients over the ranks once a step that is exact for this engine.

    Coalescing sums the chunks' gradients in the parameters' own dtype. In fp32 that is exact and needs one reduction;
    in bf16 it loses bits with every chunk, so there the engine's own accumulation (fp32, `grad_accum_dtype`) is used,
    at the price of a reduction a chunk under ZeRO-2/3.
    """
    trainable = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("the encoder has no trainable parameter")
    if all(parameter.dtype == torch.float32 for parameter in trainable):
        return _coalesced
    return _at_last_chunk


@contextmanager
def _coalesced(engine: Any, num_chunks: int) -> Iterator[BeforeBackward]:
    """One reduction when the block ends."""
    with engine.coalesce_grad_reduction():
        yield lambda: None
        if engine.zero_optimization_stage() < 3:
            # A parameter without gradient on some ranks would shift the others' gradients to wrong places in the
            # reduction's buckets (equal sizes: silently). ZeRO-3 partitions gradients and needs no filling.
            for parameter in engine.module.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)


@contextmanager
def _at_last_chunk(engine: Any, num_chunks: int) -> Iterator[BeforeBackward]:
    """The engine accumulates by itself; the last chunk is the boundary."""
    done = 0

    def before_backward() -> None:
        nonlocal done
        done += 1
        engine.set_gradient_accumulation_boundary(done == num_chunks)

    yield before_backward
