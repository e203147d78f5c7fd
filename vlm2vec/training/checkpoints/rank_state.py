"""The part of a checkpoint that differs between ranks: random states and the meter's sums."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm2vec.errors import InputError
from vlm2vec.training.checkpoints.writer import rank_file
from vlm2vec.training.watch.metrics import StepMeter


def rank_state(device: torch.device, meter: StepMeter) -> dict[str, Any]:
    """This process's state as tensors, numbers and text, so that loading it runs no code."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "accelerator": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device),
        "python": [version, list(words), gauss],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "meter": meter.state_dict(),
    }


def restore_rank(checkpoint: Path, rank: int, device: torch.device, meter: StepMeter) -> None:
    """Restores the state of `rank`.

    Raises:
        InputError: The file cannot be read.
    """
    state = _read(checkpoint, rank)
    torch.set_rng_state(state["torch"])
    if state["accelerator"] is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["accelerator"], device)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    meter.load_state_dict(state["meter"])


def restore_on_other_ranks(checkpoint: Path, num_ranks: int, rank: int, meter: StepMeter) -> None:
    """Restores on a different number of ranks: the first rank takes over the meter's sums of all old ranks.

    Random states stay as a new run seeds them: only dropout masks depend on them.
    """
    if rank == 0:
        meter.load_state_dict(*(_read(checkpoint, other)["meter"] for other in range(num_ranks)))


def seed_rank(seed: int, step: int, num_ranks: int, rank: int) -> None:
    """Seeds torch, numpy and Python for a rank that has no state to continue; dropout differs from rank to rank."""
    words = np.random.SeedSequence([seed % 2**64, step, num_ranks, rank]).generate_state(3, np.uint32)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))


def _read(checkpoint: Path, rank: int) -> dict[str, Any]:
    path = checkpoint / rank_file(rank)
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file can raise any type
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    return state
