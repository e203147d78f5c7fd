"""The options of `python -m eval.mmeb`: the original's names, typed, refused at parse time where they contradict."""

from __future__ import annotations

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


@dataclass
class _NamedModel:
    model_name: str = field(
        metadata={"help": "model folder or Hugging Face name; with --checkpoint_path the base model"}
    )


# Fields come in the order of the bases from right to left: the model's name is the first option.
@dataclass
class EncoderArguments(ImageLimitFlags, _NamedModel):
    """Which model, and how it turns an item into a vector."""

    lora: bool = field(default=False, metadata={"help": "the model is a LoRA adapter on a base model"})
    checkpoint_path: str | None = field(
        default=None,
        metadata={"help": "with --lora: the adapter; without it --model_name is the adapter and names its base"},
    )
    pooling: str = field(
        default="eos",
        metadata={"help": "eos or last, two names for one thing: the last token's hidden state; default: eos"},
    )
    normalize: bool | None = field(
        default=None,
        metadata={"help": "whether vectors are scaled to length 1, so that scores are cosines; default: as trained"},
    )
    max_len: int | None = field(
        default=None,
        metadata={
            "help": "most tokens of an item without an image; default: as trained, else as the prompt format has it"
        },
    )
    prompt_format: str | None = field(
        default=None,
        metadata={"help": "how prompts are made: a format of the model's family by its name; default: as trained"},
    )
    allow_changed: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"{', '.join(SETTINGS)}: those that may differ from what the model was trained with; the scores "
            "and the report then say so"
        },
    )

    allow_other_base: bool = field(
        default=False,
        metadata={"help": "score an adapter on another base model than it was trained on; the scores then say so"},
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
class ScoringArguments:
    """Which datasets, where they lie, and where the scores go."""

    dataset_name: str = field(metadata={"help": "folder or Hugging Face name of a dataset in MMEB-eval's layout"})
    image_dir: str = field(metadata={"help": "folder that the image paths of the rows start from"})
    encode_output_path: str = field(
        metadata={"help": "folder for the run's files and its embeddings; ranks on several machines must share it"}
    )
    subset_name: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={
            "help": "datasets by name, or all, IND, OOD, classification, vqa, retrieval, grounding; default: all"
        },
    )
    dataset_split: str = field(default="test", metadata={"help": "the split to read; default: test"})
    per_device_eval_batch_size: int | None = field(
        default=None,
        metadata={"help": "most items in one batch; default: batches are packed by tokens alone"},
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": "most tokens in one batch, padding counted; default: 16,384, on a CPU 4,096"},
    )
    dataloader_num_workers: int = field(
        default=2, metadata={"help": "processes a rank that decode images ahead; 0 = in the rank itself; default: 2"}
    )
    benchmark: str = field(
        default=AUTO,
        metadata={
            "help": "the benchmark that gives datasets their meta-tasks: "
            f"{', '.join(BENCHMARK_NAMES)}; auto goes by the datasets' names, folder takes all as one's own"
        },
    )
    strict_original: bool = field(
        default=False, metadata={"help": "count as the original's argmax does: ties with the truth are right"}
    )
    allow_links: bool = field(
        default=False, metadata={"help": "follow links that lead out of --image_dir, for images on another disk"}
    )
    num_frames: int | None = field(
        default=None,
        metadata={
            "help": "frames of a clip, where an image path names a folder of frames; default: such paths are errors"
        },
    )
    local_rank: int = field(default=-1, metadata={"help": "set by the launcher"})

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


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[EncoderArguments, ScoringArguments]:
    """Parses the command line (`sys.argv` if None).

    Raises:
        InputError: an unknown or incomplete option, a folder that does not exist, options that contradict.
    """
    model, data = parse_groups(
        (EncoderArguments, ScoringArguments),
        "python -m eval.mmeb",
        "Scores a model on datasets in MMEB-eval's layout: Precision@1, one folder of results.",
        argv,
    )
    return model, data


def parse_groups(
    groups: tuple[type[Any], ...], program: str, description: str, argv: Sequence[str] | None
) -> tuple[Any, ...]:
    """Parses a command line into dataclasses, of which `EncoderArguments` is the first.

    Args:
        groups: The dataclasses.
        program: How the program is started, for messages.
        description: What it does.
        argv: `sys.argv` if None.

    Raises:
        InputError: An unknown or incomplete option, or what the dataclasses refuse.
    """
    parser = DataclassParser(
        groups,
        old_names={**EVALUATION, **OLD_NAMES},
        prog=program,
        description=description,
    )
    # `--normalize` alone means True; HfArgumentParser allows that only where the default is True or False.
    normalize = next(action for action in parser._actions if action.dest == "normalize")
    normalize.nargs, normalize.const = "?", True
    parser.refuse_unknown(sys.argv[1:] if argv is None else argv)
    *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        raise InputError(f"unknown option {unknown[0]}; {program} --help lists the options")
    return tuple(parsed)


def at_least_one(option: str, value: int | None) -> None:
    """Refuses a number below 1.

    Raises:
        InputError: It is.
    """
    if value is not None and value < 1:
        raise InputError(f"--{option} {value}: must be 1 or more")
