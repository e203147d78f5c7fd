"""The weights in a checkpoint of ZeRO ranks, put together one tensor at a time from memory-mapped files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from vlm2vec.backbones.checkpoint import Shape
from vlm2vec.errors import InputError
from vlm2vec.model_folder.weights import LazyTensor, at_hand
from vlm2vec.ranks import prepare_environment
from vlm2vec.training.checkpoints.state_files import safe_state_files

# How the trained module's parameters are called inside `VLM2Vec`.
BACKBONE = "backbone."
_ZERO3_MASTERS = "fp32_flat_groups"
_ZERO12_MASTERS = "single_partition_of_fp32_groups"


def zero_weights(folder: Path) -> dict[str, LazyTensor]:
    """The trained module's weights by its own names; those that were trained are the float32 master copies.

    DeepSpeed's own converter (0.19.8) builds the whole model at once under ZeRO-1/2, builds all frozen weights at once
    under ZeRO-3 and loses them under ZeRO-1; its lazy tensor for ZeRO-3's trained weights is used here.

    Args:
        folder: With the ranks' files, of any number of ranks.

    Raises:
        InputError: Files are missing, damaged, of a different number of ranks, or hold more than tensors and numbers.
    """
    prepare_environment()
    from deepspeed.utils.zero_to_fp32 import get_model_state_files, get_optim_files

    try:
        with safe_state_files(mapped=True):
            models = [torch.load(file, map_location="cpu") for file in get_model_state_files(str(folder))]
            optimizers = [
                torch.load(file, map_location="cpu")["optimizer_state_dict"] for file in get_optim_files(str(folder))
            ]
        _check_ranks(optimizers)
        if _ZERO3_MASTERS in optimizers[0]:
            return _of_zero3(models, optimizers)
        return _of_zero1_and_2(models[0], optimizers)
    except Exception as error:  # missing, damaged or foreign files surface as any type
        raise _unreadable(folder, error) from error


def module_state(folder: Path) -> dict[str, torch.Tensor]:
    """The module's weights by a way of their own, for a comparison: not from the masters where there is another source.

    Under ZeRO-1/2 the module's own state, in the run's compute dtype; under ZeRO-3 what DeepSpeed's converter gives.

    Raises:
        InputError: As `zero_weights`.
    """
    prepare_environment()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint, get_model_state_files

    try:
        with (
            safe_state_files(mapped=True),
            open(os.devnull, "w") as silence,
            redirect_stdout(silence),  # it prints a line for every parameter it finds
            redirect_stderr(silence),  # and shows bars
        ):
            files = get_model_state_files(str(folder))
            if "zero_pp_rank" in Path(files[0]).name:
                weights = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
            else:
                weights = torch.load(files[0], map_location="cpu")["module"]
    except Exception as error:  # as above
        raise _unreadable(folder, error) from error
    return dict(weights)


def _unreadable(folder: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(f"{folder}: cannot be read as ZeRO state ({reason[:300] or type(error).__name__})")


def _check_ranks(optimizers: Sequence[Mapping[str, Any]]) -> None:
    counts = optimizers[0]["partition_count"]
    expected = max(counts) if isinstance(counts, list) else counts
    if expected != len(optimizers):
        raise ValueError(f"written by {expected} ranks, but there are optimizer files of {len(optimizers)}")


def _of_zero1_and_2(model: Mapping[str, Any], optimizers: Sequence[Mapping[str, Any]]) -> dict[str, LazyTensor]:
    """A group's parameters lie one after another in one long vector, of which every rank has a part.

    Untrained parameters are in the module's own state.
    """
    weights = {name: at_hand(tensor) for name, tensor in model["module"].items()}
    for index, shapes in enumerate(model["param_shapes"]):
        parts = [optimizer[_ZERO12_MASTERS][index] for optimizer in optimizers]
        paddings = optimizers[0].get("param_alignment_paddings")
        gaps = paddings[index] if paddings is not None else [0] * len(shapes)
        start = 0
        for (name, shape), gap in zip(shapes.items(), gaps, strict=True):
            weights[name] = LazyTensor(tuple(shape), partial(_read_range, parts, start, tuple(shape)))
            start += math.prod(shape) + gap
        if start > sum(map(len, parts)):
            raise ValueError(f"group {index} has {sum(map(len, parts)):,} numbers, its parameters need {start:,}")
    return weights


def _read_range(parts: Sequence[torch.Tensor], start: int, shape: Shape) -> torch.Tensor:
    """Numbers from `start` on in the vector that the parts form."""
    result = torch.empty(math.prod(shape), dtype=parts[0].dtype)
    ends = list(accumulate(map(len, parts)))
    for part, end in zip(parts, ends, strict=True):
        begin = end - len(part)
        low, high = max(begin, start), min(end, start + len(result))
        if low < high:
            result[low - start : high - start] = part[low - begin : high - begin]
    return result.view(shape)


def _of_zero3(models: Sequence[Mapping[str, Any]], optimizers: Sequence[Mapping[str, Any]]) -> dict[str, LazyTensor]:
    """Every parameter is cut into one piece a rank."""
    from deepspeed.utils.zero_to_fp32 import GatheredTensor, zero3_partitioned_param_info

    weights = {}
    for name, shape in (models[0].get("frozen_param_shapes") or {}).items():
        pieces = [model["frozen_param_fragments"][name] for model in models]
        weights[name] = LazyTensor(tuple(shape), partial(_read_range, pieces, 0, tuple(shape)))
    vectors = [optimizer[_ZERO3_MASTERS] for optimizer in optimizers]
    bounds = [0, *accumulate(map(len, vectors[0]))]
    start = 0
    for shapes in models[0]["param_shapes"]:
        for name, shape in shapes.items():
            piece, _ = zero3_partitioned_param_info(shape.numel(), len(optimizers))
            weights[name] = LazyTensor(tuple(shape), GatheredTensor(vectors, bounds, start, piece, shape).contiguous)
            start += piece
    if start != bounds[-1]:
        raise ValueError(f"a rank has {bounds[-1]:,} numbers, its pieces of the parameters need {start:,}")
    return weights
