"""The cached contrastive step (GradCache, arXiv 2101.06983) on a DeepSpeed engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlm2vec.contrastive.chunk import Chunk, Phase, StepChunks
from vlm2vec.contrastive.gather import gather_rows
from vlm2vec.contrastive.gradcache import GradCache, RandContext
from vlm2vec.contrastive.loss import ContrastiveLoss, RowStatistics
from vlm2vec.contrastive.pairs import Pairs
from vlm2vec.contrastive.reduction import copies_at_boundary, gradient_reduction
from vlm2vec.contrastive.slots import Slots, agree_on_slots
from vlm2vec.contrastive.watch import Part, Place, Watch

_NAMES_IN_ERRORS = 8
# Attributes of transformers' attention modules that hold the dropout rate of the attention kernel.
_DROPOUT_RATES = ("dropout", "attention_dropout")
_COMPARING = Place(Part.COLLECTIVES, "comparing chunks")
_LOSS = Place(Part.LOSS, "loss")
_REDUCING = Place(Part.COLLECTIVES, "reducing gradients")
# Places of the phases; each chunk's place adds its number.
_PASS_1 = Place(Part.PASS_1, "pass 1")
_PASS_1_WITH_GRAPH = Place(Part.PASS_1, "pass 1 with graph", is_kept=True)
_PASS_2 = Place(Part.PASS_2, "pass 2")
_PASS_2_END = Place(Part.PASS_2, "pass 2, end")


class ChunkError(RuntimeError):
    """The encoder failed on a chunk; the message names rank, pass, chunk and items."""


class DamagedItemsError(RuntimeError):
    """A rank could not read an item; raised on all ranks before anything is updated. Repeat the step without it."""


class NonFiniteLossError(RuntimeError):
    """The loss or a representation is not finite; raised before anything is updated."""


@dataclass(frozen=True)
class StepLayout:
    """Distribution of one global batch to the ranks; a pure function of the batch, the same on all ranks.

    Attributes:
        counts: Number of items of every rank; items are numbered rank by rank.
        local_order: Position of each local item, in that numbering, in this rank's concatenated chunks, shape
            (counts[rank],), int64.
        pairs: Rows of the global batch in that numbering.
        rows: Rows whose loss this rank computes.
        digest: Hash of step and items, compared over the ranks before anything runs.
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
        loss: This rank's share of the loss, a scalar on the device; the sum over ranks is the global batch's loss.
        statistics: Statistics of this rank's rows.
    """

    loss: Tensor
    statistics: RowStatistics


@dataclass(frozen=True)
class _Call:
    """One engine call: its arguments, its number of real rows, and what an error message names."""

    arguments: dict[str, Any]
    num_items: int
    place: str
    names: tuple[str, ...]
    damaged: tuple[int, ...]


@dataclass(frozen=True)
class _Encoded:
    """Result of pass 1: representations of each slot and, with dropout, the random states of slots that run again."""

    encoded: list[Tensor]
    kept: list[Tensor]
    random_states: list[RandContext]


def has_dropout(module: nn.Module) -> bool:
    """Whether two forward passes of a module in training mode may differ."""
    return any(
        isinstance(rate, float) and rate > 0
        for each in module.modules()
        for rate in ([each.p] if isinstance(each, nn.Dropout) else [getattr(each, name, 0) for name in _DROPOUT_RATES])
    )


class CachedStep(GradCache):
    """One contrastive step over a global batch that does not have to fit into memory.

    Pass 1 encodes all chunks without a graph. The loss is computed on the representations of all ranks and gives a
    gradient for each. Pass 2 encodes chunk by chunk with a graph and backpropagates that gradient. The resulting
    gradient equals that of one process that holds the whole batch in one graph.

    The methods have GradCache's names (`forward_no_grad`, `build_cache`, `forward_backward`), and its `RandContext`
    replays dropout in pass 2. Added are: any number of ranks (negatives are gathered with gradient), slots that the
    ranks agree on (so that ZeRO-3 never hangs), kept graphs, and a single gradient reduction per step.

    Example, for any encoder on a DeepSpeed engine; `tokens` is this rank's (2 n, length) batch, queries then targets:

        >>> def train_step(engine, cached_step, tokens, step):
        ...     rank, ranks, n = dist.get_rank(), dist.get_world_size(), len(tokens) // 2
        ...     chunks = [Chunk({"tokens": part}, len(part)) for part in tokens.split(8)]
        ...     first = torch.arange(ranks).repeat_interleave(n) * 2 * n + torch.arange(n).repeat(ranks)
        ...     layout = StepLayout(
        ...         counts=(2 * n,) * ranks,
        ...         local_order=torch.arange(2 * n),
        ...         pairs=Pairs(query=first, positive=first + n),
        ...         rows=range(rank * n, (rank + 1) * n),
        ...         digest=step,
        ...     )
        ...     output = cached_step(StepChunks.of(chunks, keep_graphs=1), layout)
        ...     engine.step()
        ...     return output.loss
        >>> cached_step = CachedStep(engine, ContrastiveLoss(0.02), Chunk({"tokens": padding}, 1))  # doctest: +SKIP

    Args:
        engine: A DeepSpeed engine (ZeRO-1, 2 or 3, `gradient_accumulation_steps` 1) around an encoder that returns unit
            rows `(**inputs) -> (items, dimension)`.
        loss_fn: Computes the loss of a range of rows.
        padding_chunk: A minimal chunk without images, run with weight zero if a different rank has more chunks.
        group: The process group of the ranks; the default group if None.
        watch: Follows the step's parts and places.
    """

    def __init__(
        self,
        engine: Any,
        loss_fn: ContrastiveLoss,
        padding_chunk: Chunk,
        group: dist.ProcessGroup | None = None,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(models=[engine], chunk_sizes=1, loss_fn=loss_fn)
        if engine.gradient_accumulation_steps() != 1:
            raise ValueError(
                "the cached step needs gradient_accumulation_steps 1: the global batch is one step, however many "
                f"chunks it has (got {engine.gradient_accumulation_steps()})"
            )
        self.engine = engine
        self.padding_chunk = padding_chunk
        self.group = group
        self.world_size = dist.get_world_size(group) if dist.is_initialized() else 1
        self.watch = watch or Watch()
        self._has_dropout = has_dropout(engine.module)
        self._reduce_gradients_once = gradient_reduction(engine)
        self._copies_at_boundary = copies_at_boundary(engine)

    def cache_step(self, chunks: StepChunks, layout: StepLayout, stop: bool = False) -> StepOutput:
        """Computes the global batch's gradient and leaves it in the engine; the caller runs `engine.step()`.

        Args:
            chunks: This rank's items.
            layout: Their places in the global batch.
            stop: Whether this rank asks all ranks not to run the step; sent along with the chunk counts, at no cost.

        Raises:
            StepStoppedError: A rank asked to stop; nothing has run and no random number was drawn.
            ChunkError: The encoder failed on this rank; the other ranks wait until they are ended.
            DamagedItemsError: A rank could not read an item (`Chunk.damaged`).
            NonFiniteLossError: The loss or a representation is not finite.
            ValueError: With dropout, pass 1 and pass 2 have different chunks.
            RuntimeError: The ranks do not have the same global batch.
        """
        if chunks.encode.num_chunks != chunks.repeat.num_chunks and self._has_dropout:
            raise ValueError(
                "with dropout, pass 1 must run the chunks of pass 2: masks are replayed call by call "
                f"(got {chunks.encode.num_chunks} and {chunks.repeat.num_chunks} chunks)"
            )
        with self.watch.part(Part.COLLECTIVES, _COMPARING):
            encode, keep, repeat = agree_on_slots(chunks, layout.digest, self.engine.device, self.group, stop)
        with self.watch.part(Part.PASS_1):
            first_pass = self.forward_no_grad(self.engine, chunks, (encode, keep))
        with self.watch.part(Part.LOSS, _LOSS):
            cache, output = self.build_cache(first_pass, chunks, layout)
        with self.watch.part(Part.PASS_2):
            # A padding chunk must close pass 2 if its last backward would not reach the vision tower, whose accumulated
            # gradients DeepSpeed then would not copy (see `copies_at_boundary`).
            has_images = keep.with_images + repeat.with_images > 0
            closes = self._copies_at_boundary and has_images and repeat.count > repeat.with_images
            self.forward_backward(self.engine, (chunks.repeat, repeat), cache, first_pass, closes)
        return output

    def model_call(self, model: nn.Module, model_input: dict[str, Any]) -> Tensor:
        """Runs one engine call; returns representations (items, dimension)."""
        representations: Tensor = model(**model_input)
        return representations

    def forward_no_grad(self, model: nn.Module, chunks: StepChunks, slots: tuple[Slots, Slots]) -> _Encoded:
        """Pass 1: encodes all chunks without a graph, except for those whose graph is kept."""
        encoded: list[Tensor] = []
        random_states: list[RandContext] = []
        with torch.no_grad():
            for call in self._calls(chunks.encode, slots[0], _PASS_1):
                if self._has_dropout:  # each saved state takes 5 KB and a copy
                    random_states.append(RandContext(*self.get_input_tensors(call.arguments)))
                encoded.append(self._encode(model, call))
        kept = [self._encode(model, call) for call in self._calls(chunks.keep, slots[1], _PASS_1_WITH_GRAPH)]
        return _Encoded(encoded, kept, random_states)

    def build_cache(
        self, first_pass: _Encoded, chunks: StepChunks, layout: StepLayout
    ) -> tuple[tuple[Tensor, list[Tensor]], StepOutput]:
        """Computes the loss over all ranks' representations, and its gradient.

        Returns:
            The gradient for the items that run again, concatenated, and for each kept slot; and the step's output.

        Raises:
            DamagedItemsError: See `cache_step`.
            NonFiniteLossError: The loss or a representation is not finite. To check it before anything is updated, the
                host waits for the device here.
        """
        own = first_pass.encoded[: chunks.encode.num_chunks] + first_pass.kept[: chunks.keep.num_chunks]
        nothing = (first_pass.encoded + first_pass.kept)[0][:0]  # (0, dimension), for a rank that has no items
        # The leaf whose gradient is the cache: the graph of the loss ends here.
        local = torch.cat([nothing, *own]).detach().requires_grad_()
        ordered = local.index_select(0, layout.local_order.to(local.device, non_blocking=True))
        everything = gather_rows(ordered, layout.counts, self.group, lambda: self.watch.part(Part.COLLECTIVES))
        loss, statistics = self.loss_fn(everything, layout.pairs.to(local.device), layout.rows)
        # Checks all ranks' representations, so that all ranks stop and none waits for another.
        if not bool(torch.isfinite(everything).all() & torch.isfinite(loss)):
            if bool(everything.isneginf().all(dim=1).any()):
                raise DamagedItemsError("an item of the step cannot be read; nothing was updated")
            raise NonFiniteLossError(
                f"rank {self._rank()}: {int((~torch.isfinite(everything)).any(dim=1).sum())} of {len(everything)} "
                f"representations are not finite, the loss of its rows is {float(loss.detach())}; nothing was updated. "
                "Lower the learning rate or raise the warm-up"
            )
        loss.backward()
        assert local.grad is not None
        kept_sizes = [each.shape[0] for each in first_pass.kept[: chunks.keep.num_chunks]]
        repeated, *kept = torch.split(local.grad, [local.shape[0] - sum(kept_sizes), *kept_sizes])
        return (repeated, kept), StepOutput(loss.detach(), statistics)

    def forward_backward(
        self,
        model: nn.Module,
        repeat: tuple[Phase, Slots],
        cached_gradients: tuple[Tensor, list[Tensor]],
        first_pass: _Encoded,
        closes: bool = False,
    ) -> None:
        """Pass 2: backward through kept graphs, then forward and backward of the other slots; one reduction over ranks.

        With `closes`, a padding chunk with a dummy image runs last: its backward, with weight zero, reaches all trained
        parameters.
        """
        repeated, kept = cached_gradients
        phase, slots = repeat
        reduction = self._reduce_gradients_once(model, len(first_pass.kept) + slots.count + closes)
        with self.watch.leaving(Part.COLLECTIVES, _REDUCING, reduction) as before_backward:
            # The last graph first: ZeRO-3 still has its parameters gathered.
            while first_pass.kept:
                representations = first_pass.kept.pop()
                gradient = kept[len(first_pass.kept)] if len(first_pass.kept) < len(kept) else None
                before_backward()
                self.watch.at(Place(Part.PASS_2, f"pass 2, kept chunk {len(first_pass.kept) + 1}", is_kept=True))
                self._backward(representations, gradient)
            start = 0
            states = first_pass.random_states
            for slot, call in enumerate(self._calls(phase, slots, _PASS_2)):
                if call.damaged:
                    raise ChunkError(f"rank {self._rank()}, {call.place}: an item that pass 1 could read is unreadable")
                with states[slot] if slot < len(states) else nullcontext():
                    representations = self._encode(model, call)
                gradient = repeated[start : start + call.num_items] if call.num_items else None
                start += call.num_items
                before_backward()
                self._backward(representations, gradient)
            if closes:
                before_backward()
                self._backward(self._closing_chunk(model, states), None)

    def _closing_chunk(self, model: nn.Module, states: list[RandContext]) -> Tensor:
        """Encodes the padding chunk with a dummy image, under a saved random state if any, so that none is drawn."""
        (call,) = self._calls(Phase.of([]), Slots(count=1, with_images=1), _PASS_2_END)
        with states[-1] if states else nullcontext():
            return self._encode(model, call)

    def _backward(self, representations: Tensor, gradient: Tensor | None) -> None:
        """Runs one surrogate backward; for a padding chunk (gradient None) with weight zero but through the graph."""
        if not representations.requires_grad:  # DeepSpeed's message would be "loss must be a scalar tensor"
            raise ValueError(
                "the encoder's representations of a chunk do not depend on any trainable parameter; the encoder must "
                "run its trainable parts on every chunk, with weight zero where their result is not needed"
            )
        # The gradient of dot(representations, gradient) is the cached gradient times the encoder's Jacobian. The engine
        # averages over ranks, but each rank has its share of a sum, hence the factor world_size.
        if gradient is None:
            surrogate = representations.sum() * 0.0
        else:
            surrogate = torch.dot(representations.flatten(), gradient.flatten()) * self.world_size
        self.engine.backward(surrogate, scale_wrt_gas=False)

    def _calls(self, phase: Phase, slots: Slots, phase_place: Place) -> Iterator[_Call]:
        """Yields the engine calls of a phase; a chunk is moved to the device only when it runs."""
        chunks = slots.fill(phase, self.padding_chunk)
        for slot in range(slots.count):
            place = replace(phase_place, words=f"{phase_place.words}, chunk {slot + 1} of {slots.count}")
            waiting = replace(place, words=f"{place.words}, waiting for its data", is_pause=True)
            with self.watch.part(Part.DATA_WAIT, waiting):
                chunk, is_own, with_images = next(chunks)
            self.watch.at(place)
            yield _Call(
                arguments=chunk.arguments(self.engine.device, dummy_image=with_images),
                num_items=chunk.num_items if is_own else 0,
                place=place.words,
                names=chunk.names,
                damaged=chunk.damaged if is_own else (),
            )

    def _encode(self, model: nn.Module, call: _Call) -> Tensor:
        """Runs `model_call`; an error names its chunk and items.

        A damaged item's representation is set to minus infinity, which no encoder returns, so that every rank detects
        it after the gather.
        """
        try:
            representations = self.model_call(model, call.arguments)
            if call.damaged:
                damaged = torch.tensor(call.damaged, device=representations.device)
                representations = representations.index_fill(0, damaged, float("-inf"))
            return representations
        except Exception as error:
            rest = len(call.names) - _NAMES_IN_ERRORS
            items = ", ".join(call.names[:_NAMES_IN_ERRORS]) + (f" and {rest} more" if rest > 0 else "")
            raise ChunkError(
                f"rank {self._rank()}, {call.place} ({items or 'unnamed'}): {type(error).__name__}: {error}"
            ) from error

    def _rank(self) -> int:
        return dist.get_rank(self.group) if dist.is_initialized() else 0
