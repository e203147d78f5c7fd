"""The options of `python -m eval.mmeb`: the original's names, typed, refused at parse time where they contradict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from transformers import HfArgumentParser

from vlm2vec.errors import InputError

ADAPTER_CONFIG = "adapter_config.json"
POOLINGS = ("eos", "last")


class OneLineErrors:
    """For an argument parser: a bad command line is reported as all bad input, one line, without the usage block."""

    prog: str

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise InputError(f"{message}; {self.prog} --help lists the options")


class _Parser(OneLineErrors, HfArgumentParser):
    pass


@dataclass
class ModelArguments:
    """Which model, and how it turns an item into a vector."""

    model_name: str = field(metadata={"help": "model folder; with --lora --checkpoint_path the base model's folder"})
    lora: bool = field(default=False, metadata={"help": "the model is a LoRA adapter on a base model"})
    checkpoint_path: str | None = field(
        default=None, metadata={"help": "adapter folder, with --lora; without it --model_name is the adapter folder"}
    )
    pooling: str = field(default="eos", metadata={"help": "eos or last: the last token's hidden state"})
    normalize: bool = field(default=True, metadata={"help": "unit vectors, so that scores are cosine similarities"})
    num_crops: int | None = field(
        default=None, metadata={"help": "most crops a picture; default: what the model's processor says"}
    )
    max_len: int = field(default=256, metadata={"help": "most tokens of an item without a picture"})

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise InputError(
                f"--pooling {self.pooling}: VLM2Vec pools the last token; use --pooling eos (or its other name, last)"
            )
        _at_least_one("num_crops", self.num_crops)
        _at_least_one("max_len", self.max_len)
        _existing_folder("model_name", self.model_name)
        if self.checkpoint_path is not None:
            if not self.lora:
                raise InputError(
                    f"--checkpoint_path {self.checkpoint_path} without --lora: add --lora for an adapter, "
                    "or give a full model's folder as --model_name"
                )
            _existing_folder("checkpoint_path", self.checkpoint_path)
        if self.lora:
            option = "model_name" if self.checkpoint_path is None else "checkpoint_path"
            folder = Path(self.checkpoint_path or self.model_name)
            if not (folder / ADAPTER_CONFIG).is_file():
                raise InputError(
                    f"--lora: {folder} has no {ADAPTER_CONFIG}; --{option} must be an adapter folder, "
                    "or leave --lora out for a full model"
                )


@dataclass
class DataArguments:
    """Which datasets, where they lie, and where the scores go."""

    dataset_name: str = field(metadata={"help": "folder in MMEB-eval's layout, <Dataset>/<split>-*.parquet"})
    image_dir: str = field(metadata={"help": "folder that the image paths of the rows start from"})
    encode_output_path: str = field(metadata={"help": "folder for scores.json and the two files of each dataset"})
    subset_name: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={"help": "datasets by name, or all, IND, OOD, classification, vqa, retrieval, grounding"},
    )
    dataset_split: str = field(default="test", metadata={"help": "the split to read"})
    per_device_eval_batch_size: int | None = field(
        default=None,
        metadata={"help": "most items in one batch; default: the encoder packs its batches by tokens"},
    )

    def __post_init__(self) -> None:
        _at_least_one("per_device_eval_batch_size", self.per_device_eval_batch_size)
        if not Path(self.dataset_name).is_dir():
            raise InputError(
                f"--dataset_name {self.dataset_name}: no such folder; for a dataset on the Hugging Face Hub run "
                f"`hf download NAME --repo-type dataset --local-dir DIR` first and give DIR"
            )
        _existing_folder("image_dir", self.image_dir)
        output = Path(self.encode_output_path)
        if output.exists() and not output.is_dir():
            raise InputError(f"--encode_output_path {output}: exists and is not a folder")


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[ModelArguments, DataArguments]:
    """Parses the command line (`sys.argv` if None).

    Raises:
        InputError: an unknown or incomplete option, a folder that does not exist, options that contradict.
    """
    parser = _Parser(
        [ModelArguments, DataArguments],
        prog="python -m eval.mmeb",
        description="Scores a model on datasets in MMEB-eval's layout: Precision@1, one folder of results.",
        allow_abbrev=False,
    )
    model, data, unknown = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise InputError(f"unknown option {unknown[0]}; python -m eval.mmeb --help lists the options")
    return model, data


def _at_least_one(option: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise InputError(f"--{option} {value}: must be 1 or more")


def _existing_folder(option: str, folder: str) -> None:
    if not Path(folder).is_dir():
        raise InputError(f"--{option} {folder}: no such folder")
