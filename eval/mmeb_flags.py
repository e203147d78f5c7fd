"""The options of `python -m eval.mmeb`: the original's names, typed, refused at parse time where they contradict."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm2vec.backbones.image_limits import LIMITS, OLD_NAMES, ImageLimitFlags
from vlm2vec.errors import InputError
from vlm2vec.evaluation.data.selection import AUTO, BENCHMARK_NAMES
from vlm2vec.messages.dataclass_parser import DataclassParser
from vlm2vec.messages.old_names import EVALUATION

POOLINGS = ("eos", "last")
# What belongs to a model beside its weights, and may be chosen here.
SETTINGS = (*LIMITS, "max_len", "normalize", "prompt_format")


def flag(text: str, metavar: str | None = None) -> dict[str, str]:
    """A field's metadata: the help of its flag, and the placeholder of its value (by its type if None)."""
    return {"help": text} if metavar is None else {"help": text, "metavar": metavar}


@dataclass
class _NamedModel:
    """Model: what is scored, and how it turns an item into a vector."""

    model_name: str = field(
        metadata=flag("Model folder or Hugging Face name; with --checkpoint_path the base model.", "DIR|NAME")
    )


# Fields come in the order of the bases from right to left: the model's name is the first option.
@dataclass
class EncoderArguments(ImageLimitFlags, _NamedModel):
    """Which model, and how it turns an item into a vector."""

    lora: bool = field(default=False, metadata=flag("The model is a LoRA adapter on a base model."))
    checkpoint_path: str | None = field(
        default=None,
        metadata=flag("With --lora: the adapter. If not given, --model_name is the adapter and names its base.", "DIR"),
    )
    pooling: str = field(
        default="eos",
        metadata=flag("Pooling: 'eos' or 'last', two names for the hidden state of the last token.", "eos|last"),
    )
    normalize: bool | None = field(
        default=None,
        metadata=flag("Scale vectors to length 1, so that scores are cosines. If not given: as in training."),
    )
    max_len: int | None = field(
        default=None,
        metadata=flag(
            "Maximum length of an item without an image, in tokens. If not given: as in training, else as the prompt "
            "format has it."
        ),
    )
    prompt_format: str | None = field(
        default=None,
        metadata=flag("Name of a prompt format of the model's family. If not given: as in training.", "NAME"),
    )
    allow_changed: list[str] = field(
        default_factory=list,
        metadata=flag(
            f"Settings that may differ from those in training: {', '.join(SETTINGS)}. The scores and the report then "
            "say so.",
            "NAME",
        ),
    )

    allow_other_base: bool = field(
        default=False,
        metadata=flag(
            "Score an adapter on a base model other than the one that it was trained on. The scores then say so."
        ),
    )

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise InputError(
                f"--pooling {self.pooling}: VLM2Vec pools the last token; use --pooling eos (or its other name, last)"
            )
        self.refuse_impossible_limits()
        at_least_one("max_len", self.max_len)
        for name in self.allow_changed:
            if name not in SETTINGS:
                raise InputError(f"--allow_changed {name}: use some of {', '.join(SETTINGS)}")
            if getattr(self, name) is None:
                raise InputError(f"--allow_changed {name}: no effect without --{name}")
        if self.checkpoint_path is not None and not self.lora:
            raise InputError(
                f"--checkpoint_path {self.checkpoint_path} without --lora: add --lora for an adapter, "
                "or give a full model as --model_name"
            )


@dataclass
class _DatasetFlags:
    """Data: which datasets are scored, and where the scores go."""

    dataset_name: str = field(
        metadata=flag("Folder or Hugging Face name of a dataset in MMEB-eval's layout.", "DIR|NAME")
    )
    image_dir: str = field(metadata=flag("Folder that the image paths of the rows are relative to.", "DIR"))
    encode_output_path: str = field(
        metadata=flag("Folder for the scores and the embeddings. Ranks on several machines must share it.", "DIR")
    )
    subset_name: list[str] = field(
        default_factory=lambda: ["all"],
        metadata=flag("Datasets by name, or all, IND, OOD, classification, vqa, retrieval, grounding.", "NAME"),
    )
    dataset_split: str = field(default="test", metadata=flag("Split to read.", "NAME"))


@dataclass(kw_only=True)
class EncodingArguments:
    """Encoding: batches and worker processes."""

    per_device_eval_batch_size: int | None = field(
        default=None,
        metadata=flag("Maximum number of items in a batch. If not given: only --batch_tokens limits a batch."),
    )
    batch_tokens: int | None = field(
        default=None,
        metadata=flag("Maximum number of tokens in a batch, padding included. If not given: 16,384, on a CPU 4,096."),
    )
    dataloader_num_workers: int = field(
        default=2,
        metadata=flag("Processes per rank that decode images ahead; 0 decodes in the rank itself."),
    )


@dataclass
class ScoringArguments(EncodingArguments, _DatasetFlags):
    """Scoring: how rows are counted, and how images are found."""

    benchmark: str = field(
        default=AUTO,
        metadata=flag(
            "Benchmark that gives datasets their meta-tasks. 'auto' goes by the names of the datasets; 'folder' treats "
            "all as your own.",
            "|".join(BENCHMARK_NAMES),
        ),
    )
    strict_original: bool = field(
        default=False,
        metadata=flag("Count as the argmax of the original code does: a tie with the truth is right."),
    )
    allow_links: bool = field(
        default=False,
        metadata=flag("Follow symbolic links that lead out of --image_dir, for images on a different disk."),
    )
    num_frames: int | None = field(
        default=None,
        metadata=flag(
            "Frames per clip, if an image path names a folder of frames. If not given: such paths are errors."
        ),
    )
    # Set by the launcher, not by people.
    local_rank: int = field(default=-1, metadata=flag(argparse.SUPPRESS))

    def __post_init__(self) -> None:
        at_least_one("per_device_eval_batch_size", self.per_device_eval_batch_size)
        at_least_one("batch_tokens", self.batch_tokens)
        at_least_one("num_frames", self.num_frames)
        if self.dataloader_num_workers < 0:
            raise InputError(f"--dataloader_num_workers {self.dataloader_num_workers}: must be 0 or more")
        if self.benchmark not in BENCHMARK_NAMES:
            raise InputError(f"--benchmark {self.benchmark}: use one of {', '.join(BENCHMARK_NAMES)}")
        if not Path(self.image_dir).is_dir():
            raise InputError(f"--image_dir {self.image_dir}: no such folder")


def parser() -> DataclassParser:
    """The command line of `eval.mmeb`."""
    return parser_of(
        (EncoderArguments, ScoringArguments),
        prog="python -m eval.mmeb",
        description="Scores a model on datasets in MMEB-eval's layout: Precision@1, one folder of results. A run that "
        "was stopped is continued by the same command.",
        examples=(
            "python -m eval.mmeb --model_name demo/trained --dataset_name demo/mini/MMEB-eval --image_dir "
            "demo/mini/MMEB-eval/images --encode_output_path demo/scores/trained",
            "deepspeed --num_gpus 8 --module eval.mmeb --model_name BASE --lora --checkpoint_path ADAPTER "
            "--dataset_name MMEB-eval --subset_name IND --image_dir MMEB-eval/images --encode_output_path SCORES",
        ),
    )


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[EncoderArguments, ScoringArguments]:
    """Parses the command line (`sys.argv` if None).

    Raises:
        InputError: An unknown or incomplete option, a folder that does not exist, options that contradict each other.
    """
    model, data = parse_groups(parser(), argv)
    return model, data


def parser_of(groups: tuple[type[Any], ...], **keywords: Any) -> DataclassParser:
    """The parser of an evaluation program.

    Args:
        groups: The dataclasses, of which `EncoderArguments` is the first.
        keywords: As of `Parser`.
    """
    made = DataclassParser(groups, ("Model", "Data"), old_names={**EVALUATION, **OLD_NAMES}, **keywords)
    # `--normalize` alone means True; HfArgumentParser allows that only where the default is True or False.
    normalize = next(action for action in made._actions if action.dest == "normalize")
    normalize.nargs, normalize.const = "?", True
    return made


def parse_groups(parser: DataclassParser, argv: Sequence[str] | None) -> tuple[Any, ...]:
    """Parses a command line into the dataclasses of the parser.

    Args:
        parser: See `parser_of`.
        argv: `sys.argv` if None.

    Raises:
        InputError: An unknown or incomplete option, or a value that the dataclasses refuse.
    """
    parser.refuse_unknown(sys.argv[1:] if argv is None else argv)
    *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        raise InputError(f"unknown option {unknown[0]}; {parser.prog} --help lists the options")
    return tuple(parsed)


def at_least_one(option: str, value: int | None) -> None:
    """Refuses a number below 1.

    Raises:
        InputError: It is.
    """
    if value is not None and value < 1:
        raise InputError(f"--{option} {value}: must be 1 or more")
