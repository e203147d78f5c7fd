"""Finds and loads the model of a run, and describes it in `scores.json`."""

from __future__ import annotations

import sys
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from eval.mmeb_flags import SETTINGS, EncoderArguments
from vlm2vec.backbones.checkpoint import resolve_folder
from vlm2vec.backbones.image_limits import LIMITS
from vlm2vec.backbones.interface import ItemProcessor
from vlm2vec.backbones.registry import family_of_folder
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.model_folder.adapter_files import (
    ADAPTER_CONFIG,
    OtherBaseError,
    check_base,
    is_adapter_folder,
)
from vlm2vec.model_folder.digest import fingerprint
from vlm2vec.model_folder.loading import choose_settings, find_base, load_processor, stored_settings
from vlm2vec.model_folder.settings import ChangedSettingWarning, ModelSettings, is_same, shown
from vlm2vec.ranks import is_first_rank


@dataclass(frozen=True)
class ModelFolders:
    """A whole model's folder, and the folder of an adapter on it, if there is one."""

    base: Path
    adapter: Path | None


def resolve_model(arguments: EncoderArguments) -> ModelFolders:
    """Finds the folders that the options name, downloading Hugging Face repositories.

    Raises:
        InputError: A name is neither a folder nor a repository, or `--lora` is given without an adapter.
    """
    base = resolve_folder(arguments.model_name)
    if arguments.checkpoint_path is not None:
        return ModelFolders(base, _adapter(resolve_folder(arguments.checkpoint_path), "checkpoint_path"))
    if is_adapter_folder(base) or arguments.lora:
        adapter = _adapter(base, "model_name")
        return ModelFolders(find_base(adapter)[1], adapter)
    return ModelFolders(base, None)


def use_settings(arguments: EncoderArguments, folders: ModelFolders) -> tuple[EncoderArguments, dict[str, str]]:
    """The settings with which a model is scored: those given, otherwise those that it was trained with.

    A folder without vlm2vec_config.json, such as a base model, does not say how it was trained.

    Returns:
        The complete arguments, and for each setting that differs from training the difference ("1 instead of 4").

    Raises:
        InputError: A setting differs that `--allow_changed` does not name.
    """
    family = family_of_folder(folders.base)
    trained = stored_settings(folders.base, folders.adapter, family)
    if trained.stored and trained.image_limits.keys() < set(family.image_limits):
        processor = load_processor(folders.base, folders.adapter, image_limits=trained.image_limits)
        trained = trained.with_limits(processor.image_limits)
    given = {name: value for name in SETTINGS if (value := getattr(arguments, name)) is not None}
    wanted, _ = choose_settings(folders.base, folders.adapter, given, family, prefix="--")
    differing = {
        name: f"{shown(now, before)} instead of {shown(before, now)}"
        for name in given
        if name in trained.stored and not is_same(name, before := getattr(trained, name), now := getattr(wanted, name))
    }
    for name, difference in differing.items():
        if name not in arguments.allow_changed:
            raise InputError(
                f"--{name} {difference}, which {folders.adapter or folders.base} was trained with: leave it out, or "
                f"add --allow_changed {name}"
            )
    idle = [name for name in arguments.allow_changed if name not in differing]
    if idle:
        raise InputError(f"--allow_changed {idle[0]}: no effect, the model was not trained with a different {idle[0]}")
    if other := _other_base(folders):
        if not arguments.allow_other_base:
            raise InputError(f"{other}; score it on that base, or add --allow_other_base")
        differing["base model"] = other
    elif arguments.allow_other_base:
        raise InputError("--allow_other_base: no effect, the model is not an adapter, or its base does not differ")
    used = {name: given.get(name, getattr(trained, name)) for name in SETTINGS if name != "prompt_format"}
    return replace(arguments, **{**used, "max_len": wanted.max_len}), differing


def processor_of_run(arguments: EncoderArguments, folders: ModelFolders) -> ItemProcessor:
    """The processor with which a model is scored.

    Raises:
        InputError: See `load_processor`.
    """
    named = arguments.prompt_format
    prompt_format = None if named is None else family_of_folder(folders.base).prompt_format(named)
    return load_processor(folders.base, folders.adapter, prompt_format, arguments.image_limits)


def recognised_format(arguments: EncoderArguments, folders: ModelFolders, processor: ItemProcessor) -> str | None:
    """A line that names the prompt format, if neither a flag nor a file does and the family has several."""
    named = arguments.prompt_format or ModelSettings.read(folders.adapter, folders.base).prompt_format
    if named is not None or len(family_of_folder(folders.base).prompt_formats) == 1:
        return None
    source = folders.adapter or folders.base
    return (
        f"prompt format {processor.prompt_format.name}: recognized by the files or name of {source}, which stores none"
    )


def _other_base(folders: ModelFolders) -> str | None:
    """A message if an adapter's base is not the one on which it was trained; otherwise None."""
    if folders.adapter is None:
        return None
    try:
        check_base(folders.base, folders.adapter)
    except OtherBaseError as error:
        return str(error)
    return None


def load_encoder(folders: ModelFolders, arguments: EncoderArguments, device: torch.device) -> VLM2Vec:
    """Loads the encoder, in the precision of its files."""
    if not sys.stderr.isatty() or not is_first_rank():
        disable_progress_bar()  # transformers' progress bar over the weights, which is unreadable in a log file
    limits: dict[str, Any] = dict(arguments.image_limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChangedSettingWarning)  # `use_settings` reports it
        return VLM2Vec.from_pretrained(
            folders.base,
            adapter=folders.adapter,
            max_len=arguments.max_len,
            device=device,
            normalize=arguments.normalize,
            allow_other_base=arguments.allow_other_base,
            prompt_format=arguments.prompt_format,
            **limits,
        )


def describe_model(arguments: EncoderArguments, folders: ModelFolders, processor: ItemProcessor) -> dict[str, Any]:
    """The model's identity for `scores.json`: what decides its vectors, and a hash of its files."""
    parts = [folders.base] if folders.adapter is None else [folders.base, folders.adapter]
    # Differences that were allowed are listed among the warnings.
    left_out = {"allow_changed", "allow_other_base", *LIMITS}
    values = {name: value for name, value in asdict(arguments).items() if name not in left_out}
    values |= {**processor.image_limits, "prompt_format": processor.prompt_format.model_dump()}
    return {**values, "fingerprint": fingerprint(parts)}


def _adapter(folder: Path, option: str) -> Path:
    if not (folder / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"--lora: {folder} has no {ADAPTER_CONFIG}; give an adapter as --{option}, "
            "or leave out --lora for a whole model"
        )
    return folder
