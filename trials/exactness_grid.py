"""The cells of the exactness grid: batches, chunks, what is trained, and bounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trials.rig.tiny import FAMILIES, PHI3_V
from vlm2vec.batches import ChunkSizes
from vlm2vec.inputs.packing import FixedCounts, TokenBudget

TOLERANCE = 1e-6  # relative: norm of the gradient's error over the gradient's norm
# Where bfloat16 adds the same numbers in a different order.
BF16_TOLERANCE = 2.0**-8
TEMPERATURE = 0.05
PAIRS = 10
DROPOUT = 0.1


@dataclass(frozen=True)
class Batch:
    """A kind of global batch: which items have images, and which rank encodes an item.

    Items are numbered in the order queries, targets, hard negatives.

    Attributes:
        query_has_image: Whether the query of a row has an image.
        owner: The rank of an item, from its number and the number of ranks.
        target_images: Whether the targets of every fifth row have images, if the row's query has one.
        negative_rows: The row of each hard negative.
        has_kit: Whether all options of the loss are used: weights, masks, temperatures of groups, a teacher.
    """

    query_has_image: Callable[[int], bool]
    owner: Callable[[int, int], int]
    target_images: bool = True
    negative_rows: tuple[int, ...] = ()
    has_kit: bool = False


BATCHES = {
    # On up to four ranks, every rank has images and texts.
    "mixed": Batch(lambda row: row % 4 < 2, lambda item, ranks: item % ranks),
    "text only on some ranks": Batch(lambda row: True, lambda item, ranks: 0 if item < PAIRS else item % ranks, False),
    "images on one rank only": Batch(
        lambda row: row % 2 == 0, lambda item, ranks: 0 if item < PAIRS else ranks - 1, False
    ),
    "duplicates across ranks": Batch(lambda row: row % 3 == 0, lambda item, ranks: (item * 7) % ranks),
    "hard negatives": Batch(lambda row: row % 2 == 1, lambda item, ranks: (item // 3) % ranks, negative_rows=(2, 5, 9)),
    "one item on a rank": Batch(lambda row: row % 3 == 0, lambda item, ranks: 0 if item else ranks - 1),
    "a rank without items": Batch(lambda row: True, lambda item, ranks: 0),
    # Runs after batches with images: nothing of their gradient may remain in the vision tower's gradient.
    "no images": Batch(lambda row: False, lambda item, ranks: item % ranks),
}
# In separate cells, because the loss treats it the same whatever is trained.
KIT = "loss kit"
KIT_BATCH = Batch(BATCHES["mixed"].query_has_image, BATCHES["mixed"].owner, True, (0, 2, 2, 2, 5, 5, 9), has_kit=True)
EXTREMES = ("one item on a rank", "a rank without items", "no images")
# Pass 1 merges chunks only without dropout.
CHUNKS = {
    "one item": ChunkSizes(FixedCounts(1, 1)),
    "ragged": ChunkSizes(TokenBudget(70), no_grad_tokens=200, keep_graphs=1),
    "whole batch": ChunkSizes(TokenBudget(10**6), keep_graphs=2),
}
# "bf16": float32 adapters on a bfloat16 base, under autocast. "adapter dropout": dropout on the adapter's input only.
# "checkpointed": gradient checkpointing, compared with the plain graph without it.
# "compiled", which is in no grid: compiled elementwise operators, compared with the uncompiled plain graph.
PLAIN_KINDS = ("full", "lora", "dora")
CHECKPOINTED_KINDS = ("full checkpointed", "dora checkpointed")
KINDS = (*PLAIN_KINDS, "dora adapter dropout", "lora bf16", "dora bf16", "lora checkpointed", "dora checkpointed")
VARIANT_BATCHES = ("mixed", "text only on some ranks")


@dataclass(frozen=True)
class Cell:
    """One cell of the grid, for a given number of ranks."""

    stage: int
    kind: str
    dropout: float
    batch: str
    chunks: str
    family: str = PHI3_V

    @property
    def is_bf16(self) -> bool:
        """Whether the base is in bfloat16, and the step under autocast."""
        return "bf16" in self.kind

    @property
    def has_textbook_reference(self) -> bool:
        """Whether the reference is one chunk on one rank: only where results do not depend on the chunks."""
        return not self.dropout and not self.is_bf16

    @property
    def tolerance(self) -> float:
        """The largest relative error allowed.

        With bfloat16, a chunk's result depends on its shape, and without dropout pass 1 has larger ragged chunks.
        ZeRO-3's hooks change the order in which autograd adds the gradients of a tensor that several layers read, which
        PEFT's LoRA layers make of each input; our DoRA layers add them themselves. Otherwise the same numbers are added
        in the same order, see `PlainGraph.gradient_given`.
        """
        same_chunks = self.dropout > 0 or self.chunks != "ragged"
        same_order = self.stage < 3 or self.kind.startswith("dora")
        return TOLERANCE if not self.is_bf16 or (same_chunks and same_order) else BF16_TOLERANCE


def full_grid() -> list[Cell]:
    """Every combination except the extreme batches, which the test suite runs; for variants two kinds of batches."""
    batches = [name for name in BATCHES if name not in EXTREMES]
    return [
        Cell(*each)
        for each in itertools.product((1, 2, 3), KINDS, (0.0, DROPOUT), batches, CHUNKS)
        if each[1] in PLAIN_KINDS or each[3] in VARIANT_BATCHES
    ] + [Cell(stage, kind, 0.0, KIT, chunks) for stage in (1, 2, 3) for kind in PLAIN_KINDS for chunks in CHUNKS]


def family_grid(family: str) -> list[Cell]:
    """The cells that depend on the model: ZeRO-2 and 3, trained parts, checkpointing, ranks with and without images.

    The cached step does not depend on the family, so its use of chunks is covered by `full_grid`.
    """
    settings = [(kind, 0.0, chunks) for kind in PLAIN_KINDS for chunks in CHUNKS]
    settings += [(kind, DROPOUT, "ragged") for kind in (*PLAIN_KINDS, *CHECKPOINTED_KINDS)]
    return [
        Cell(stage, kind, dropout, batch, chunks, family)
        for stage, (kind, dropout, chunks), batch in itertools.product((2, 3), settings, VARIANT_BATCHES)
    ]


def grid_of(families: Sequence[str] = FAMILIES) -> list[Cell]:
    """The cells of some families; Phi-3-V gets the full grid."""
    return [cell for each in families for cell in (full_grid() if each == PHI3_V else family_grid(each))]
