"""The gradients with which the exactness grid compares: one plain graph over the global batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trials.exactness_grid import PAIRS, TEMPERATURE, Batch
from trials.rig.items import Items
from trials.rig.naive_loss import naive_loss
from trials.rig.tiny import PHI3_V, tiny_items, tiny_model
from vlm2vec.backbones.interface import ProcessedItem
from vlm2vec.batches import ChunkSizes
from vlm2vec.batches.step_plan import end_to_end_positions
from vlm2vec.choices import LoraSettings
from vlm2vec.contrastive import (
    Chunk,
    Distillation,
    Negatives,
    Pairs,
    Phase,
    StepChunks,
    StepLayout,
)
from vlm2vec.contrastive.gather import gather_rows
from vlm2vec.contrastive.slots import agree_on_slots
from vlm2vec.encoder import VLM2Vec

KIT_NEGATIVES = Negatives(hardness_weight=9.0, similarity=0.4, margin=-0.6)
KIT_DISTILLATION = Distillation(weight=0.5, temperature=0.1)
KIT_TEMPERATURES = (0.05, 0.1, 0.2)


def build_encoder(kind: str, dropout: float, family: str = PHI3_V) -> VLM2Vec:
    """Builds a tiny encoder. Adapters get a nonzero B, because a zero B would hide half of the gradient.

    The adapter's scale is moderate: with the default of 16 the plain graph itself differs from float64 by 4e-6.
    """
    full = kind.startswith("full")
    encoder = VLM2Vec(tiny_model(0, dropout if full else 0.0, family), processor=None, max_len=None)  # type: ignore[arg-type]
    if not full:
        encoder.to(torch.bfloat16 if "bf16" in kind else torch.float32)
        dropout_on = "adapter" if "adapter dropout" in kind else "input"
        settings = LoraSettings(r=4, alpha=4, dropout=dropout, dropout_on=dropout_on, use_dora="dora" in kind)
        encoder.add_lora(settings)
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    return encoder.train()


TINY = tiny_items()


@dataclass(frozen=True)
class RankBatch:
    """A global batch as one rank sees it.

    Attributes:
        chunks: The chunks of this rank's items.
        layout: The layout of the batch on all ranks.
        items: The items of all ranks, in the order in which they are gathered.
    """

    chunks: StepChunks
    layout: StepLayout
    items: Sequence[ProcessedItem]


def rank_batch(batch: Batch, sizes: ChunkSizes, rank: int, ranks: int, made: Items = TINY) -> RankBatch:
    """Distributes a batch to ranks. The last row shares the first row's target, and three rows have a hard negative."""
    items = [made.make(row, batch.query_has_image(row)) for row in range(PAIRS)]
    with_image = [batch.target_images and row % 5 == 4 and batch.query_has_image(row) for row in range(PAIRS)]
    items += [made.make(100 + row, has_image) for row, has_image in enumerate(with_image)]
    positive = [*range(PAIRS, 2 * PAIRS - 1), PAIRS]
    negative_row = list(batch.negative_rows)
    items += [made.make(200 + number, number == 1) for number in range(len(negative_row))]
    owners = [batch.owner(item, ranks) for item in range(len(items))]
    order = sorted(range(len(items)), key=lambda item: owners[item])
    number = {item: place for place, item in enumerate(order)}
    own = [item for item in order if owners[item] == rank]
    encode, keep, repeat = sizes.phases([made.measured(items[item], item < PAIRS) for item in own])

    def chunks(phase: Sequence[Sequence[int]]) -> list[Chunk]:
        return [made.inputs.chunk([items[own[index]] for index in chunk]) for chunk in phase]

    layout = StepLayout(
        counts=tuple(owners.count(each) for each in range(ranks)),
        local_order=end_to_end_positions([*encode, *keep]),
        pairs=Pairs(
            torch.tensor([number[item] for item in range(PAIRS)]),
            torch.tensor([number[item] for item in positive]),
            torch.tensor([number[2 * PAIRS + each] for each in range(len(negative_row))]) if negative_row else None,
            torch.tensor(negative_row) if negative_row else None,
            **(kit_knowledge(number, negative_row) if batch.has_kit else {}),
        ),
        rows=range(rank * PAIRS // ranks, (rank + 1) * PAIRS // ranks),
        digest=7,
    )
    phases = StepChunks(*(Phase.of(chunks(phase)) for phase in (encode, keep, repeat)))
    return RankBatch(phases, layout, [items[item] for item in order])


def kit_knowledge(number: dict[int, int], negative_row: list[int]) -> dict[str, Tensor]:
    """A teacher's scores and masks of the rows, with some missing, and the rows' temperature groups."""
    teacher_positive, teacher_negative = torch.linspace(0.9, 0.3, PAIRS), torch.linspace(0.8, 0.4, len(negative_row))
    teacher_positive[5] = teacher_negative[1] = float("nan")
    return {
        "ignored": torch.tensor([[row, number[PAIRS + (row + 2) % 7]] for row in range(0, PAIRS, 3)]),
        "teacher_positive": teacher_positive,
        "teacher_negative": teacher_negative,
        "temperature_group": torch.arange(PAIRS) % len(KIT_TEMPERATURES),
    }


def kit_gradient(encoder: VLM2Vec, batch: RankBatch, made: Items) -> tuple[dict[str, Tensor], Tensor]:
    """The textbook gradient (see `textbook_gradient`) with all options, and that of the temperatures' logarithms."""
    encoder.zero_grad()
    everything = encoder(**made.inputs.chunk(batch.items).arguments(encoder.device, dummy_image=False))
    theta = torch.tensor(KIT_TEMPERATURES, dtype=torch.float64, device=encoder.device).log().requires_grad_()
    pairs = batch.layout.pairs.to(encoder.device)
    naive_loss(everything, pairs, theta.exp(), True, True, (), KIT_NEGATIVES, KIT_DISTILLATION).backward()  # type: ignore[no-untyped-call]
    assert theta.grad is not None
    return _gradients_of(encoder), theta.grad


def padding_chunk(made: Items = TINY) -> Chunk:
    """A chunk of one token."""
    return made.inputs.chunk([ProcessedItem(torch.tensor([1]))])


@dataclass(frozen=True)
class PlainGraph:
    """The global batch without a cache: every rank's chunks in one graph, which can be used once.

    Attributes:
        encoder: The encoder.
        layout: The layout of the batch.
        local: Representations of this rank's items, in the order of the chunks of pass 1.
    """

    encoder: VLM2Vec
    layout: StepLayout
    local: Tensor

    @classmethod
    def of(cls, encoder: VLM2Vec, batch: RankBatch, seed: int, made: Items = TINY) -> PlainGraph:
        """Calls run in the order of pass 1, so that the same seed gives the same dropout masks."""
        device = encoder.device
        torch.manual_seed(seed)
        slots = agree_on_slots(batch.chunks, 0, device)
        rows = []
        for phase, phase_slots in zip(batch.chunks.phases[:2], slots[:2], strict=True):
            for chunk, is_own, with_images in phase_slots.fill(phase, padding_chunk(made)):
                representations = encoder(**chunk.arguments(device, with_images))
                if is_own:
                    rows.append(representations)
        return cls(encoder, batch.layout, torch.cat([representations[:0], *rows]))

    def gradient(self) -> dict[str, Tensor]:
        """The gradient of the mean loss: one loss, one backward pass, one sum over ranks."""
        return self._backward(self._loss())

    def gradient_given(self, of_representations: Tensor) -> tuple[dict[str, Tensor], float]:
        """The gradient behind the loss's gradient as a step computed it, and the relative error of the latter.

        For models in bfloat16. Two ways to compute the loss differ by 2e-7, which is enough for a number to be rounded
        to the next bfloat16: the model's gradients then differ by up to 7e-4, depending on the processor, although each
        is right. With the same gradient of the representations, they must be the same.

        Args:
            of_representations: The gradient with respect to `local`.
        """
        (own,) = torch.autograd.grad(self._loss(), self.local, retain_graph=True)
        squares = torch.stack([(of_representations - own).square().sum(), own.square().sum()])
        dist.all_reduce(squares)
        gradient = self._backward(torch.dot(self.local.flatten(), of_representations.flatten()))
        return gradient, float((squares[0] / squares[1]).sqrt())

    def _loss(self) -> Tensor:
        everything = gather_rows(self.local[self.layout.local_order.to(self.local.device)], self.layout.counts)
        return mean_loss(everything, self.layout, self.layout.rows)

    def _backward(self, loss: Tensor) -> dict[str, Tensor]:
        self.encoder.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = _gradients_of(self.encoder)
        for gradient in gradients.values():
            dist.all_reduce(gradient)
        return gradients


def plain_gradient(encoder: VLM2Vec, batch: RankBatch, seed: int, made: Items = TINY) -> dict[str, Tensor]:
    """The gradient without a cache, see `PlainGraph`."""
    return PlainGraph.of(encoder, batch, seed, made).gradient()


def textbook_gradient(
    encoder: VLM2Vec, batch: RankBatch, made: Items = TINY, temperature: float = TEMPERATURE
) -> dict[str, Tensor]:
    """The gradient of the textbook step: the global batch is one chunk on one rank, without cache, ranks and dummies.

    Only for models without dropout, because different chunks have different dropout masks.
    """
    encoder.zero_grad()
    chunk = made.inputs.chunk(batch.items)
    everything = encoder(**chunk.arguments(encoder.device, dummy_image=False))
    mean_loss(everything, batch.layout, range(PAIRS), temperature).backward()  # type: ignore[no-untyped-call]
    return _gradients_of(encoder)


def mean_loss(everything: Tensor, layout: StepLayout, rows: Sequence[int], temperature: float = TEMPERATURE) -> Tensor:
    """Some rows' part of the mean loss; the sum over all rows is the global batch's."""
    pairs = layout.pairs.to(everything.device)
    scores = everything[pairs.query] @ everything[pairs.positive].T
    if pairs.negative is not None:
        scores = torch.cat([scores, everything[pairs.query] @ everything[pairs.negative].T], 1)
    numbers = torch.tensor(list(rows), device=everything.device)
    return F.cross_entropy(scores[numbers] / temperature, numbers, reduction="sum") / PAIRS


def _gradients_of(encoder: VLM2Vec) -> dict[str, Tensor]:
    trained = {name: each for name, each in encoder.named_parameters() if each.requires_grad}
    return {name: torch.zeros_like(each) if each.grad is None else each.grad.clone() for name, each in trained.items()}
