"""What is written, in which order, and that it appears as a whole."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from vlm2vec.errors import InputError
from vlm2vec.export.base import LM_HEAD, BaseModel, carry_code_references, find_base, require_base
from vlm2vec.export.lazy import LazyTensor
from vlm2vec.export.merging import merged_weights
from vlm2vec.export.shards import write_file, write_shards
from vlm2vec.export.zero_state import zero_weights
from vlm2vec.files import apply_umask, sync
from vlm2vec.lora import ADAPTER_CONFIG
from vlm2vec.phi3_v import Phi3VConfig, Phi3VModel
from vlm2vec.phi3_v.checkpoint import check_tensors, checkpoint_shapes, load_config
from vlm2vec.phi3_v.processor import read_json
from vlm2vec.training.checkpoint import ENCODER_FOLDER, ENGINE_TAG, RECORD, RunRecord

ADAPTER_WEIGHTS = "adapter_model.safetensors"
DEFAULT_SHARD_SIZE = "5GB"
# How the trained module's parameters are called inside `VLM2Vec`.
_BACKBONE = "backbone."


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        num_bytes: Of the tensors.
        dtype: Of the tensors.
        is_adapter: An adapter, not a whole model.
        has_lm_head: The base's output head is in it.
    """

    num_bytes: int
    dtype: torch.dtype
    is_adapter: bool
    has_lm_head: bool


def export(
    checkpoint: Path,
    output: Path,
    dtype: torch.dtype | None = None,
    merge_lora: bool = False,
    *,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    base_model: str | None = None,
) -> Exported:
    """Writes the Hugging Face folder of a checkpoint.

    A run with `--lora` gives an adapter folder that names its base model, or with `merge_lora` a whole model. Weights
    come from the float32 master copies. A whole model gets its base's `lm_head`, if the base is at hand.

    Args:
        checkpoint: As `vlm2vec.training.checkpoint.Checkpoints` writes it.
        output: The folder to make. It appears under its name when it is complete.
        dtype: Of the written weights; None: bfloat16 if the run computed in it, else float32. An adapter stays float32.
        merge_lora: Add the adapter to the base model's weights.
        max_shard_size: Bytes of a weight file, or as in "5GB". At no time more than one file's tensors are in memory.
        base_model: The base model, if it is not where the run had it.

    Raises:
        InputError: Not a complete checkpoint, an output that exists, or an option without effect.
    """
    record = RunRecord.read(checkpoint / RECORD)
    is_adapter = bool(record.arguments["lora"])
    if merge_lora and not is_adapter:
        raise InputError(f"--merge_lora: {checkpoint} is of a run without --lora; there is nothing to merge")
    if is_adapter and not merge_lora and dtype is not None:
        raise InputError("--dtype: adapters are written in float32; use it with --merge_lora")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists already; choose another folder or remove it")
    dtype = dtype or (torch.bfloat16 if record.arguments["bf16"] else torch.float32)
    base = find_base(str(record.arguments["model_name"]), base_model)
    with _appearing(output) as folder:
        shutil.copytree(checkpoint / ENCODER_FOLDER, folder, dirs_exist_ok=True)
        weights = {
            name.removeprefix(_BACKBONE): tensor for name, tensor in zero_weights(checkpoint / ENGINE_TAG).items()
        }
        if is_adapter and not merge_lora:
            return _write_adapter(weights, folder, base_model)
        if is_adapter:
            base = require_base(base, str(record.arguments["model_name"]))
            weights = merged_weights(base.weights, weights, base.config, folder)
            (folder / ADAPTER_CONFIG).unlink()
            config = base.config
        else:
            found = {name: tensor.shape for name, tensor in weights.items()}
            config = load_config(folder, found)
            check_tensors(checkpoint, found, Phi3VModel.tensor_shapes(config))
        return _write_model(weights, folder, config, base, dtype, max_shard_size)


def _write_model(
    weights: Mapping[str, LazyTensor],
    folder: Path,
    config: Phi3VConfig,
    base: BaseModel | None,
    dtype: torch.dtype,
    max_shard_size: int | str,
) -> Exported:
    expected = Phi3VModel.tensor_shapes(config)
    head = base.lm_head(expected) if base is not None else {}
    tensors = {name: weights[name] for name in expected} | head
    num_bytes = write_shards(tensors, folder, dtype, max_shard_size)
    config.dtype = dtype  # the checkpoint's configuration says what the run loaded, not what is written here
    config.architectures = ["Phi3VForCausalLM" if head else Phi3VModel.__name__]
    config.save_pretrained(folder)
    if base is not None:
        carry_code_references(base, folder)
    if checkpoint_shapes(folder) != {name: tensor.shape for name, tensor in tensors.items()}:
        raise InputError(f"{folder}: the files do not hold what was written to them; is the disk sound?")
    return Exported(num_bytes, dtype, is_adapter=False, has_lm_head=LM_HEAD in head)


def _write_adapter(weights: Mapping[str, LazyTensor], folder: Path, base_model: str | None) -> Exported:
    tensors = {_name_in_adapter_file(name): tensor for name, tensor in weights.items()}
    write_file(tensors, folder / ADAPTER_WEIGHTS, torch.float32)
    if base_model is not None:
        file = folder / ADAPTER_CONFIG
        settings = read_json(file) | {"base_model_name_or_path": base_model}
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    num_bytes = sum(4 * math.prod(tensor.shape) for tensor in tensors.values())
    return Exported(num_bytes, torch.float32, is_adapter=True, has_lm_head=False)


def _name_in_adapter_file(name: str) -> str:
    """PEFT's name for a parameter in files: without the adapter's own name; DoRA's vectors without `.weight`."""
    return name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector").replace(".default.", ".")


@contextmanager
def _appearing(output: Path) -> Iterator[Path]:
    """A folder to fill that gets its name when the block ends well, and vanishes when it does not."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".tmp-{output.name}-"))
    folder.chmod(0o755)
    try:
        yield folder
        apply_umask(folder)
        for file in folder.iterdir():
            sync(file)
        if output.exists():
            output.rmdir()
        os.replace(folder, output)
        sync(output.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
