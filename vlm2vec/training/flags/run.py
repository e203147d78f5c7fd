"""All flags of a run: parsed from a recipe and the command line, refused together."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm2vec.errors import InputError
from vlm2vec.messages.dataclass_parser import DataclassParser
from vlm2vec.messages.old_names import TRAINING
from vlm2vec.training.flags.data import DataArguments, data_refusals
from vlm2vec.training.flags.evaluation import EvaluationArguments, evaluation_refusals
from vlm2vec.training.flags.model import ModelArguments, model_refusals
from vlm2vec.training.flags.option import Policy, policies, refuse, unused_refusals
from vlm2vec.training.flags.recipe import recipe_flags
from vlm2vec.training.flags.training import TrainingArguments, step_refusals, training_refusals

GROUPS = (ModelArguments, DataArguments, TrainingArguments, EvaluationArguments)
# The policy of every flag.
POLICIES: dict[str, Policy] = {name: policy for group in GROUPS for name, policy in policies(group).items()}


@dataclass(frozen=True)
class RunArguments:
    """All arguments of a run, checked."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)

    def global_batch_size(self, num_ranks: int) -> int:
        """Pairs a step over all ranks."""
        if self.training.global_batch_size is not None:
            return self.training.global_batch_size
        assert self.training.per_device_train_batch_size is not None
        return self.training.per_device_train_batch_size * num_ranks

    def as_dict(self) -> dict[str, Any]:
        """The resolved arguments by flag name, for the run's records."""
        return {
            name: value
            for group in (self.model, self.data, self.training, self.evaluation)
            for name, value in dataclasses.asdict(group).items()
            if name != "local_rank"
        }


def argument_defaults() -> dict[str, Any]:
    """All arguments by flag name with their defaults; those without one are empty."""
    return RunArguments(ModelArguments(""), DataArguments(""), TrainingArguments("", "", 0)).as_dict()


def parse_arguments(argv: Sequence[str], defaults: Sequence[str] = (), also_known: Iterable[str] = ()) -> RunArguments:
    """Parses flags; `--config FILE.yaml` supplies what the flags do not say, `defaults` what neither says.

    Args:
        argv: The flags.
        defaults: Flags that a recipe and `argv` may give anew.
        also_known: Flags that the caller has taken out of `argv`, to be proposed for mistyped ones.

    Raises:
        InputError: An unknown flag or key, a wrong type, a refused combination; the message names the remedy.
    """
    parser = DataclassParser(GROUPS, old_names=TRAINING, prog="vlm2vec.train", allow_abbrev=False)
    parser.add_argument("--config", help="YAML file with flags by name; flags on the command line win.")
    parser.add_argument(
        "--dry_run", action="store_true", help="Print the run's plan and end; takes the flags of vlm2vec.plan too."
    )
    parser.refuse_unknown(argv, also_known)
    recipe = recipe_flags(_config_path(argv), parser, argv)
    *groups, rest = parser.parse_args_into_dataclasses(
        [*defaults, *recipe, *argv], return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        raise InputError(f"unknown option {rest[0]}; {parser.prog} --help lists the options")
    arguments = RunArguments(*groups[: len(GROUPS)])
    _check(arguments)
    return arguments


def _config_path(argv: Sequence[str]) -> Path | None:
    for index, word in enumerate(argv):
        if word == "--config" and index + 1 < len(argv):
            return Path(os.path.expanduser(argv[index + 1]))
        if word.startswith("--config="):
            return Path(os.path.expanduser(word.removeprefix("--config=")))
    return None


def _check(arguments: RunArguments) -> None:
    """Refuses what cannot work or would be ignored, group by group, then what two groups together cannot do.

    Raises:
        InputError: With the remedy.
    """
    model, data, training, evaluation = arguments.model, arguments.data, arguments.training, arguments.evaluation
    for group in (model, data, training, evaluation):
        refuse(unused_refusals(group))
    refuse(model_refusals(model))
    refuse(data_refusals(data))
    refuse(evaluation_refusals(evaluation))
    refuse(training_refusals(training))
    refuse(
        [
            (
                model.compile_layers and training.flops_profile_step is not None,
                f"--flops_profile_step {training.flops_profile_step}: the profile does not see the operators of "
                "compiled layers; leave out --compile_layers for it",
            )
        ]
    )


def with_steps(arguments: RunArguments, steps_per_epoch: int) -> RunArguments:
    """The arguments with `max_steps` and `warmup_steps` as numbers, whatever they were given by.

    Both are rounded up, as transformers' Trainer does.

    Raises:
        InputError: A flag that names a step behind the last one.
    """
    training = arguments.training
    steps, warmup = training.max_steps, training.warmup_steps
    if training.num_train_epochs is not None:
        steps = math.ceil(training.num_train_epochs * steps_per_epoch)
    if training.warmup_ratio is not None:
        warmup = math.ceil(training.warmup_ratio * steps)
    training = dataclasses.replace(training, max_steps=steps, warmup_steps=warmup)
    refuse(step_refusals(training))
    return dataclasses.replace(arguments, training=training)
