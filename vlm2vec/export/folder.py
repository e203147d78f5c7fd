"""What is written, in which order, and that it appears as a whole."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from vlm2vec.backbones.checkpoint import check_tensors
from vlm2vec.backbones.interface import Family
from vlm2vec.backbones.registry import family_of_folder
from vlm2vec.errors import InputError
from vlm2vec.export.base import BaseModel, carry_code_references, find_base, require_base
from vlm2vec.export.card import write_card
from vlm2vec.export.check import CheckResult, check_export
from vlm2vec.export.companions import write_companions
from vlm2vec.export.exported import Exported
from vlm2vec.export.merging import merged_weights
from vlm2vec.export.safetensors_files import parse_size, write_file, write_tensors
from vlm2vec.export.scores import read_scores
from vlm2vec.export.zero_state import BACKBONE, zero_weights
from vlm2vec.files import appearing_folder, refuse_filled
from vlm2vec.formats.json_files import checked, read_json, write_json
from vlm2vec.messages.progress import still_running
from vlm2vec.model_folder.adapter_files import (
    ADAPTER_CONFIG,
    BASE_CONFIG,
    OtherBaseError,
    adapter_shapes,
    check_adapter,
    check_base,
    empty_adapter,
    published_adapter_name,
)
from vlm2vec.model_folder.adapter_files import WRITTEN_WEIGHTS as ADAPTER_WEIGHTS
from vlm2vec.model_folder.settings import ModelSettings
from vlm2vec.model_folder.weights import LazyTensor
from vlm2vec.training.checkpoints.writer import ENCODER_FOLDER, ENGINE_TAG, RECORD, RunRecord
from vlm2vec.training.settings import Precision

DEFAULT_SHARD_SIZE = "5GB"


def export(
    checkpoint: Path,
    output: Path,
    dtype: torch.dtype | None = None,
    merge_lora: bool = False,
    *,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    base_model: str | None = None,
    scores: Path | None = None,
    check: bool = False,
) -> tuple[Exported, CheckResult | None]:
    """Writes the Hugging Face folder of a checkpoint.

    A run with `--lora` gives an adapter folder that names its base model, or with `merge_lora` a whole model. Weights
    come from the float32 master copies. A whole model gets its base's `lm_head`, if the base is at hand and has one of
    its own.

    Args:
        checkpoint: As `vlm2vec.training.checkpoints.writer.Checkpoints` writes it.
        output: The folder to make. It appears under its name when it is complete.
        dtype: Of the written weights; None: bfloat16 if the run computed in it, else float32. An adapter stays float32.
        merge_lora: Add the adapter to the base model's weights.
        max_shard_size: Bytes of a weight file, or as in "5GB". At no time more than one file's tensors are in memory.
        base_model: The base model, if it is not where the run had it.
        scores: Folder of an evaluation, whose scores go into the model card.
        check: Compare the folder with the checkpoint before it appears; see `check_export`.

    Returns:
        What was written, and how it compares if `check`.

    Raises:
        InputError: Not a complete checkpoint, an output that exists, an option without effect, or a failed check.
    """
    record = RunRecord.read(checkpoint / RECORD)
    _refuse(checkpoint, output, record, dtype, merge_lora)
    size = parse_size(max_shard_size)
    card_scores = read_scores(scores) if scores is not None else None
    recorded_base = str(record.arguments["model_name"])
    base = find_base(recorded_base, base_model)
    with appearing_folder(output) as folder:
        shutil.copytree(checkpoint / ENCODER_FOLDER, folder, dirs_exist_ok=True)
        if base is not None:
            _check_base(base, checkpoint)
        weights = {name.removeprefix(BACKBONE): each for name, each in zero_weights(checkpoint / ENGINE_TAG).items()}
        if record.arguments["lora"] and not merge_lora:
            exported = _write_adapter(weights, folder, base, base_model)
            shutil.rmtree(folder / BASE_CONFIG, ignore_errors=True)
        else:
            if merge_lora:
                base = require_base(base, recorded_base)
                weights = merged_weights(base.weights, weights, base.config, folder)
                (folder / ADAPTER_CONFIG).unlink()
                shutil.rmtree(folder / BASE_CONFIG, ignore_errors=True)
                base.config.save_pretrained(folder)
            else:
                published = family_of_folder(folder).backbone.published_name
                weights = {published(name): each for name, each in weights.items()}
            dtype = dtype or Precision.of(record.arguments["bf16"], record.arguments["lora"]).compute
            exported = _write_model(checkpoint, weights, folder, base, dtype, size)
        _complete_settings(folder, record, exported.family)
        write_companions(folder)
        write_card(folder, output.resolve().name, record, exported, base, card_scores)
        if not check:
            return exported, None
        with still_running("comparing the folder with the checkpoint"):
            return exported, check_export(checkpoint, record, folder, exported, base)


def _refuse(checkpoint: Path, output: Path, record: RunRecord, dtype: torch.dtype | None, merge_lora: bool) -> None:
    """What cannot be done or would have no effect, before anything is read or written."""
    missing = sorted({"lora", "bf16", "model_name", "max_len"} - record.arguments.keys())
    if missing:
        raise InputError(f"{checkpoint / RECORD}: the run's arguments lack {', '.join(missing)}")
    is_adapter = bool(record.arguments["lora"])
    if merge_lora and not is_adapter:
        raise InputError(f"--merge_lora: {checkpoint} is of a run without --lora; there is nothing to merge")
    if is_adapter and not merge_lora and dtype is not None:
        raise InputError("--dtype: adapters are written in float32; use it with --merge_lora")
    refuse_filled(output)


def _write_model(
    checkpoint: Path,
    weights: Mapping[str, LazyTensor],
    folder: Path,
    base: BaseModel | None,
    dtype: torch.dtype,
    max_shard_size: int,
) -> Exported:
    found = {name: tensor.shape for name, tensor in weights.items()}
    family = family_of_folder(folder)
    config = family.backbone.load_config(folder, found)
    expected = family.backbone.tensor_shapes(config)
    check_tensors(checkpoint, found, expected, family.backbone.tensor_names)
    # A tied head is the token embedding: another one in the base's files is read by no program.
    is_tied = bool(getattr(config, "tie_word_embeddings", False))
    head = base.lm_head(expected) if base is not None and not is_tied else {}
    tensors = {name: weights[name] for name in expected} | head
    num_bytes = write_tensors(tensors, folder, dtype, max_shard_size)
    config.dtype = dtype  # the checkpoint's configuration says what the run loaded, not what is written here
    config.architectures = [family.backbone.causal_class if head or is_tied else family.backbone.__name__]
    config.save_pretrained(folder)
    if base is not None:
        carry_code_references(base, folder)
    return Exported(
        *(family, num_bytes, dtype),
        is_adapter=False,
        has_lm_head=bool(head),
        base_at_hand=base is not None,
        is_tied=is_tied,
    )


def _write_adapter(
    weights: Mapping[str, LazyTensor], folder: Path, base: BaseModel | None, base_model: str | None
) -> Exported:
    file, settings = folder / ADAPTER_CONFIG, read_json(folder / ADAPTER_CONFIG)
    own_config = folder / BASE_CONFIG  # absent from checkpoints of older versions
    if not own_config.is_dir():
        base = require_base(base, str(settings.get("base_model_name_or_path")))
        family, config = base.family, base.config
    else:
        family = family_of_folder(own_config)
        config = family.backbone.load_config(own_config, {})
    tensors = {_name_in_adapter_file(name, family): tensor for name, tensor in weights.items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    check_adapter(folder / ADAPTER_WEIGHTS, found, adapter_shapes(empty_adapter(config, folder)))
    write_file(tensors, folder / ADAPTER_WEIGHTS, torch.float32)
    if base_model is not None:
        name = os.path.abspath(base_model) if Path(base_model).is_dir() else base_model
        write_json(file, settings | {"base_model_name_or_path": name})
    num_bytes = sum(4 * math.prod(tensor.shape) for tensor in tensors.values())
    return Exported(family, num_bytes, torch.float32, is_adapter=True, has_lm_head=False, base_at_hand=base is not None)


def _check_base(base: BaseModel, checkpoint: Path) -> None:
    try:
        check_base(base.folder, checkpoint / ENCODER_FOLDER)
    except OtherBaseError as error:
        raise InputError(f"{error}; say with --base_model where the run's base is") from error


def _complete_settings(folder: Path, record: RunRecord, family: Family) -> None:
    """The settings of a checkpoint from before they were saved with it, or from before there were prompt formats."""
    found = ModelSettings.read(folder)
    if not found.stored:
        limits = family.stored_limits(folder)
        found = checked(ModelSettings, {"max_len": record.arguments["max_len"], **limits}, RECORD)
    if found.prompt_format is None:
        found.model_copy(update={"prompt_format": family.folder_format(folder)}).write(folder)


def _name_in_adapter_file(name: str, family: Family) -> str:
    """A parameter's name in files: without PEFT's name of the adapter; DoRA's vectors without `.weight`."""
    name = name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector").replace(".default.", ".")
    return published_adapter_name(name, family.backbone)
