"""Writes lazily read tensors as safetensors files, never holding more than one file's tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file

from vlm2vec.errors import InputError
from vlm2vec.messages.progress import Progress, progress_bar
from vlm2vec.model_folder.weights import LazyTensor

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_METADATA = {"format": "pt"}


def parse_size(size: int | str) -> int:
    """Bytes, from a number or a text such as "5GB" (powers of ten, as the Hugging Face libraries count).

    Raises:
        InputError: Neither, or 0.
    """
    found = re.fullmatch(r"(\d+)\s*([KMGT]?)B?", str(size).strip().upper())
    if found is None or int(found[1]) == 0:
        raise InputError(f"--max_shard_size {size}: expected a size such as 5GB or 500MB")
    return int(found[1]) * _UNITS[found[2]]


def write_tensors(
    tensors: Mapping[str, LazyTensor],
    folder: Path,
    dtype: torch.dtype | Mapping[str, torch.dtype],
    max_shard_size: int,
) -> int:
    """Writes model.safetensors, or shards and their index when the tensors exceed `max_shard_size`.

    Args:
        tensors: In the order in which they are to be written.
        folder: Where to.
        dtype: Of what is written; one for all, or by name.
        max_shard_size: Bytes of a file. A larger tensor gets a file of its own.

    Returns:
        Bytes of all tensors.

    Raises:
        InputError: A file cannot be written.
    """
    planned = {
        name: torch.empty(tensor.shape, dtype=_dtype_of(name, dtype), device="meta") for name, tensor in tensors.items()
    }
    plan = split_torch_state_dict_into_shards(
        planned, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    total = int(plan.metadata["total_size"])
    with progress_bar(total, "write", "B") as progress:
        for name, names in plan.filename_to_tensors.items():
            write_file({each: tensors[each] for each in names}, folder / name, dtype, progress)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def write_file(
    tensors: Mapping[str, LazyTensor],
    file: Path,
    dtype: torch.dtype | Mapping[str, torch.dtype],
    progress: Progress | None = None,
) -> None:
    """Writes tensors as one safetensors file.

    Args:
        tensors: In the order in which they are to be written.
        file: The file.
        dtype: Of what is written; one for all, or by name.
        progress: Gets the bytes of each tensor that is read.

    Raises:
        InputError: It cannot be written.
    """
    # Always copies: what is read may be a part of a larger buffer, and safetensors refuses to guess what is shared.
    content: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        content[name] = tensor.read().to(_dtype_of(name, dtype), copy=True).contiguous()
        if progress is not None:
            progress.update(content[name].nbytes)
    try:
        save_file(content, file, metadata=_METADATA)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be written ({' '.join(str(error).split())})") from error


def _dtype_of(name: str, dtype: torch.dtype | Mapping[str, torch.dtype]) -> torch.dtype:
    return dtype if isinstance(dtype, torch.dtype) else dtype[name]
