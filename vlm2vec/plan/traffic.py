"""Bytes that a step sends over the network; tests/distributed/test_collectives.py counts the same."""

from __future__ import annotations

from dataclasses import dataclass

from vlm2vec.contrastive.slots import AGREED_NUMBERS
from vlm2vec.plan.states import ModelSize, ZeroSettings

_FLOAT32 = 4
_AGREEMENT_BYTES = AGREED_NUMBERS * 8  # int64


@dataclass(frozen=True)
class EngineCalls:
    """Engine calls per step on every rank: as many as the rank with the most chunks needs.

    Attributes:
        encode: Calls without a graph (pass 1).
        encode_with_images: Those of them with images.
        repeat: Calls with forward and backward (pass 2).
        repeat_with_images: Those of them with images.
    """

    encode: int
    encode_with_images: int
    repeat: int
    repeat_with_images: int


@dataclass(frozen=True)
class Collective:
    """One kind of collective in a step.

    Attributes:
        what: Description for readers.
        size: Bytes of the whole tensor, summed over all calls.
        passes: How often a ring sends it: 1 for a gather or scatter, 2 for an all-reduce.
    """

    what: str
    size: float
    passes: int

    def sent(self, num_ranks: int) -> float:
        """Bytes that each rank sends (and receives) in a ring."""
        return self.passes * self.size * (num_ranks - 1) / num_ranks


def collectives(
    size: ModelSize, zero: ZeroSettings, num_ranks: int, num_items: int, width: int, calls: EngineCalls, fetches: int
) -> list[Collective]:
    """All collectives of one step.

    Args:
        size: Parameter counts of the model.
        zero: The engine's ZeRO settings.
        num_ranks: Number of ranks.
        num_items: Items of the global batch.
        width: Width of an embedding.
        calls: Engine calls per step.
        fetches: How often ZeRO-3 gathers a layer's weights in a call with backward.
    """
    representations = float(num_items * width * _FLOAT32)
    reductions = 1 if size.in_float32 or zero.stage == 1 else calls.repeat
    times = "once" if reductions == 1 else f"{reductions} times, once a chunk"
    moved = [
        Collective("agreement on chunks", _AGREEMENT_BYTES * num_ranks, 1),
        Collective("embeddings, gathered", representations, 1),
        Collective("their gradients, scattered", representations, 1),
        Collective(
            f"gradients, reduced {times}", float(reductions * size.trainable * _FLOAT32), 1 if zero.stage == 3 else 2
        ),
    ]
    if zero.stage < 3:
        moved.append(Collective("new weights, gathered", float(size.trainable * size.trainable_bytes), 1))
    else:
        with_images = calls.encode_with_images + fetches * calls.repeat_with_images
        elements = (calls.encode + fetches * calls.repeat) * size.language + with_images * size.vision
        a_weight = size.weight_bytes / size.total
        moved.append(Collective("weights, gathered for every call", elements * a_weight, 1))
    return moved
