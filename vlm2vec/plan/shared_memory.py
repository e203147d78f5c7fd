"""Shared memory (/dev/shm) that a node's loader processes fill with the images of chunks prepared ahead."""

from __future__ import annotations

import math

from vlm2vec.batches.loader import CHUNKS_AHEAD
from vlm2vec.plan.estimate import RunPlan


def shared_memory(plan: RunPlan) -> float:
    """Most bytes that a node's ranks hold in shared memory, if all images have the plan's size.

    A step's chunks are made in the order in which they run: pass 1 with images, pass 1 without, then pass 2 likewise. A
    rank holds one chunk per task of its loader processes, and the one that it is receiving. Texts are not counted.
    """
    workers = plan.settings.data.num_workers
    if workers == 0:
        return 0.0
    rows, encode_rows = plan.image_rows(), plan.encode_rows
    images, calls = math.ceil(plan.items_a_rank[0]), plan.calls
    step = [0]  # a step begins with a marker, which holds no images
    for size, num_chunks, with_images in (
        (encode_rows, calls.encode, calls.encode_with_images),
        (rows, calls.repeat, calls.repeat_with_images),
    ):
        step += _chunks(images, size) + [0] * (num_chunks - with_images)
    window = CHUNKS_AHEAD * workers + 1
    tasks = step * (2 + window // len(step))
    most = max(sum(tasks[start : start + window]) for start in range(len(step)))
    return most * plan.encode_cost.pixels / encode_rows * plan.cluster.gpus


def _chunks(images: int, size: int) -> list[int]:
    """Number of images in each chunk."""
    whole, rest = divmod(images, size)
    return [size] * whole + [rest] * (rest > 0)
