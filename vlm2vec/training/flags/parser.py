"""The command line of a run, and recipes: YAML files of flags that pass the same types and checks.

Without torch, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlm2vec.backbones.image_limits import OLD_NAMES
from vlm2vec.errors import InputError
from vlm2vec.installed.settings_files import recipe_file
from vlm2vec.messages.command_line import Parser
from vlm2vec.messages.dataclass_parser import DataclassParser
from vlm2vec.messages.old_names import TRAINING
from vlm2vec.training.flags.data import DataArguments
from vlm2vec.training.flags.evaluation import EvaluationArguments
from vlm2vec.training.flags.model import ModelArguments
from vlm2vec.training.flags.training import ALTERNATIVES, TrainingArguments
from vlm2vec.training.modes import MODES, add_modes

GROUPS = (ModelArguments, DataArguments, TrainingArguments, EvaluationArguments)
_NOT_IN_A_RECIPE = ("help", "config", *MODES)
# Sections of the help, by the titles in the docstrings of the classes that declare the flags.
_SECTIONS = (
    "Run",
    "Model",
    "Precision and memory",
    "LoRA",
    "Data",
    "Order and loading",
    "Mined negatives",
    "Batch and chunks",
    "Loss",
    "Optimizer and schedule",
    "Reproducibility",
    "Evaluation during training",
    "Checkpoints and resume",
    "Logging and profiling",
    "Cluster",
)
_USAGE = (
    "--config FILE --deepspeed FILE --model_name DIR --dataset_name DIR --output_dir DIR --global_batch_size N "
    "--max_steps N [options]"
)
_EXAMPLES = (
    "deepspeed --num_gpus 2 --module vlm2vec.train --config launch/recipes/mini.yaml --deepspeed ds_configs/zero2.json "
    "--model_name demo/untrained --dataset_name demo/shards --output_dir demo/own_run",
    "deepspeed --hostfile launch/hostfile.example --module vlm2vec.train --deepspeed ds_configs/zero3.json "
    "--model_name MODEL --dataset_name SHARDS --output_dir RUN --global_batch_size 1024 --num_train_epochs 1 --bf16 "
    "--lora --gradient_checkpointing --save_steps 100 --resume auto",
)


def parser() -> DataclassParser:
    """The parser of `vlm2vec.train`."""
    made = DataclassParser(
        GROUPS,
        _SECTIONS,
        old_names={**TRAINING, **OLD_NAMES},
        prog="vlm2vec.train",
        usage=f"{Parser.commands.get('vlm2vec.train', 'deepspeed --module vlm2vec.train')} {_USAGE}",
        description="Trains a VLM2Vec embedding model on shards: one exact contrastive step per global batch, under "
        "DeepSpeed ZeRO-1, 2 or 3.",
        examples=_EXAMPLES,
    )
    made.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with flags by name, or the name of a recipe. Flags on the command line take precedence.",
    )
    add_modes(made)
    return made


def recipe_flags(path: Path | None, parser: Parser, argv: Sequence[str]) -> list[str]:
    """A recipe as flags.

    Args:
        path: The file, or the name of a recipe that comes with the package; None: no flags.
        parser: The parser that will read them.
        argv: The command line, whose flags take precedence.

    Raises:
        InputError: A file that cannot be read, an unknown key or a value of the wrong type; the message names them.
    """
    if path is None:
        return []
    actions = {action.dest: action for action in parser._option_string_actions.values()}
    known = [f"--{name}" for name in actions if name not in _NOT_IN_A_RECIPE]
    given = given_names(parser, argv)
    replaced = {pair[1 - side] for pair in ALTERNATIVES for side in (0, 1) if pair[side] in given}
    flags: list[str] = []
    for name, value in _read(path).items():
        if f"--{name}" not in known:
            raise InputError(f"--config {path}: unknown key '{name}'{parser.advice(f'--{name}', known)}")
        if value is not None and name not in replaced:
            flags += [f"--{name}", *_words(f"--config {path}: {name}", value, actions[name])]
    return flags


def given_names(parser: Parser, words: Iterable[str]) -> set[str]:
    """The names of the flags on a command line, however they are spelled (`--max-steps`)."""
    actions = parser._option_string_actions
    return {actions[flag].dest for flag in (word.partition("=")[0] for word in words) if flag in actions}


def _read(path: Path) -> dict[Any, Any]:
    try:
        text = recipe_file(path).read_text(encoding="utf-8")
        recipe, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise InputError(f"--config {path}: expected lines of 'flag: value'")
    keys = [str(key.value) for key, _ in node.value] if node else []
    for name, count in Counter(keys).most_common(1):
        if count > 1:
            raise InputError(f"--config {path}: the key '{name}' occurs twice")
    return recipe


def _words(place: str, value: Any, action: argparse.Action) -> list[str]:
    """A value as words of a command line.

    Raises:
        InputError: The flag does not take such a value.
    """
    if isinstance(value, list) and action.nargs not in ("+", "*"):
        raise InputError(f"{place}: {value} is a list, the flag takes one value")
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InputError(f"{place}: an empty list; leave the key out")
    for each in values:
        if isinstance(each, (list, dict)) or each is None:
            raise InputError(f"{place}: {each!r} is not a single value")
        try:
            if callable(action.type):
                action.type(str(each))
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            kind = {int: "a whole number", float: "a number", str: "text"}.get(action.type, "true or false")  # type: ignore[call-overload]
            raise InputError(f"{place}: {each!r} is not {kind}") from None
    return [str(each) for each in values]
