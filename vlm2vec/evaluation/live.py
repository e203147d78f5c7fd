"""Evaluates the current weights of a training run on all of its ranks, without writing them to disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vlm2vec.contrastive import Chunk
from vlm2vec.contrastive.gather import gather_rows
from vlm2vec.dora import kept_norms
from vlm2vec.evaluation.aggregation import summarise
from vlm2vec.evaluation.data.datasets import EvalData
from vlm2vec.evaluation.encoding import BatchSource, collapse
from vlm2vec.evaluation.scoring import score_rows
from vlm2vec.ranks import own_rank, world_size

# Runs one engine call: (engine, arguments of the encoder) -> float32 (items, hidden).
ModelCall = Callable[[Any, dict[str, Any]], torch.Tensor]


class LiveEvaluation:
    """Evaluates with all ranks in lock-step, under any ZeRO stage.

    In slot s, rank r runs batch s * ranks + r of the plan. Batches with images come first; in a slot in which any rank
    has images, the others run the vision tower on a dummy. A rank without a batch runs the padding chunk. So every rank
    makes the same calls with the same modules, as ZeRO-3 needs (see `vlm2vec.contrastive.slots`).

    Args:
        data: The evaluation data.
        source: Makes its batches, the same on all ranks.
        padding_chunk: A minimal chunk without images.
        num_workers: Processes per rank that decode images ahead.
    """

    def __init__(self, data: EvalData, source: BatchSource, padding_chunk: Chunk, num_workers: int) -> None:
        self.data = data
        self.source = source
        self.padding_chunk = padding_chunk
        self.num_workers = num_workers

    def __call__(self, engine: Any, model_call: ModelCall) -> dict[str, Any] | None:
        """Evaluates the engine's weights; all ranks call it.

        The engine's mode and the random states are restored at the end.

        Returns:
            On the first rank, the summary (see `summarise`) with "warnings", or None if a vector is not finite. On the
            other ranks, None.

        Raises:
            InputError: An image can no longer be decoded.
        """
        was_training = engine.training
        with kept_random_state(engine.device):
            engine.eval()
            try:
                with torch.no_grad(), kept_norms(engine):
                    vectors = self._encode(engine, model_call)
            finally:
                engine.train(was_training)
        if vectors is None or not np.isfinite(vectors).all():
            return None
        position = self.source.plan.position
        scores = {rows.name: score_rows(vectors, position, rows).total() for rows in self.data.datasets}
        collapsed = collapse(vectors)
        return {**summarise(scores, self.data.benchmark), "warnings": [collapsed] if collapsed else []}

    def _encode(self, engine: Any, model_call: ModelCall) -> npt.NDArray[np.float32] | None:
        """Encodes all items; the first rank gets all vectors in the plan's order, float32 (distinct items, hidden)."""
        plan, (rank, ranks) = self.source.plan, (own_rank(), world_size())
        vectors: npt.NDArray[np.float32] | None = None
        own = self.source.chunks(range(rank, plan.num_batches, ranks), self.num_workers)
        for start, chunk in zip(
            range(0, plan.num_batches, ranks), chain(own, repeat(self.padding_chunk)), strict=False
        ):
            dummy_image = start < plan.num_image_batches
            encoded = model_call(engine, chunk.arguments(engine.device, dummy_image)).float()
            batches = range(start, min(start + ranks, plan.num_batches))
            counts = [len(plan.rows(batch)) for batch in batches] + [0] * (ranks - len(batches))
            everyone = gather_rows(encoded[: counts[rank]], counts)
            if rank == 0:
                if vectors is None:
                    vectors = np.empty((len(plan.order), everyone.shape[1]), dtype=np.float32)
                vectors[plan.bounds[batches.start] : plan.bounds[batches.stop]] = everyone.cpu().numpy()
        return vectors


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Context that restores torch's random states of the host and the device at its end."""
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            yield
    else:
        with torch.random.fork_rng(devices=[device], device_type=device.type):
            yield
