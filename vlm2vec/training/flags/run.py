"""All flags of a run: parsed from a recipe and the command line, refused together."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlm2vec.batches import ChunkSizes
from vlm2vec.errors import InputError
from vlm2vec.model_folder.settings import ModelSettings
from vlm2vec.training.flags.data import DataArguments, data_refusals, mixture_weights
from vlm2vec.training.flags.evaluation import EvaluationArguments, evaluation_refusals
from vlm2vec.training.flags.model import ModelArguments, model_refusals
from vlm2vec.training.flags.option import Policy, Refusal, given, no_effect, policies, refuse, unused_refusals
from vlm2vec.training.flags.parser import GROUPS, given_names, recipe_flags
from vlm2vec.training.flags.parser import parser as training_parser
from vlm2vec.training.flags.resolve import (
    checkpoint_settings,
    chunk_settings,
    data_settings,
    encoder_settings,
    engine_settings,
    evaluation_settings,
    loss_settings,
    schedule_settings,
    stage_refusals,
    watch_settings,
)
from vlm2vec.training.flags.training import TEACHER, TrainingArguments, step_refusals, training_refusals
from vlm2vec.training.settings import (
    CheckpointSettings,
    Chunking,
    ClusterSettings,
    DataSettings,
    EncoderSettings,
    EngineSettings,
    EvaluationSettings,
    LossSettings,
    OptimizerSettings,
    ScheduleSettings,
    WatchSettings,
)

# The policy of every flag.
POLICIES: dict[str, Policy] = {name: policy for group in GROUPS for name, policy in policies(group).items()}


@dataclass(frozen=True)
class RunArguments:
    """All arguments of a run, checked.

    Attributes:
        sources: "flag" or "recipe" for each one that was given, by name.
        recipe: The `--config` file, if there is one.
    """

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    recipe: Path | None = field(default=None, compare=False)

    def global_batch_size(self, num_ranks: int) -> int:
        """Pairs per step over all ranks."""
        if self.training.global_batch_size is not None:
            return self.training.global_batch_size
        assert self.training.per_device_train_batch_size is not None
        return self.training.per_device_train_batch_size * num_ranks

    def resolve(self, num_ranks: int, engine_file: Mapping[str, Any]) -> RunSettings:
        """What is in force, as far as neither data, nor the model's folder, nor a device is needed to decide it.

        Args:
            num_ranks: Ranks of the run.
            engine_file: The content of the `--deepspeed` file, see `read_engine_file`.

        Raises:
            InputError: Flags that cannot work under the file's ZeRO stage.
        """
        # Where steps are given, a share of them may be warm-up.
        arguments = self.with_steps(steps_per_epoch=0) if self.training.num_train_epochs is None else self
        model, training = arguments.model, arguments.training
        batch = self.global_batch_size(num_ranks)
        engine = engine_settings(model, training, engine_file, num_ranks, batch)
        refuse(stage_refusals(model, training, engine.cluster.zero_stage))
        return RunSettings(
            arguments=arguments,
            encoder=encoder_settings(model, training),
            engine=engine,
            schedule=schedule_settings(training),
            chunking=chunk_settings(training),
            loss=loss_settings(training),
            data=data_settings(self.data, training, batch),
            checkpoints=checkpoint_settings(training, self.evaluation.save_best, model.lora),
            watch=watch_settings(training),
            evaluation=evaluation_settings(self.evaluation),
        )

    def with_steps(self, steps_per_epoch: int) -> RunArguments:
        """The arguments with `max_steps` and `warmup_steps` as numbers, whatever they were given by.

        Both are rounded up, as transformers' Trainer does.

        Raises:
            InputError: A flag that names a step behind the last one.
        """
        training = self.training
        steps, warmup = training.max_steps, training.warmup_steps
        if training.num_train_epochs is not None:
            steps = math.ceil(training.num_train_epochs * steps_per_epoch)
        if training.warmup_ratio is not None:
            warmup = math.ceil(training.warmup_ratio * steps)
        training = replace(training, max_steps=steps, warmup_steps=warmup)
        refuse(step_refusals(training))
        return replace(self, training=training)

    def as_dict(self) -> dict[str, Any]:
        """The resolved arguments by flag name, for the run's records."""
        return {
            name: value
            for group in (self.model, self.data, self.training, self.evaluation)
            for name, value in dataclasses.asdict(group).items()
            if name != "local_rank"
        }


@dataclass(frozen=True)
class RunSettings:
    """Everything in force in a run, each group for the part of a run that takes it.

    Later steps of the start fill what they find, and return new settings: `with_model`, `with_length`, `with_chunks`.

    Attributes:
        arguments: The flags, with the steps and the longest text as numbers once they are known: what checkpoints
            record. Two runs with equal groups are the same, whatever flags said so.
        evaluation: None for a run that is not scored.
    """

    arguments: RunArguments = field(compare=False)
    encoder: EncoderSettings
    engine: EngineSettings
    schedule: ScheduleSettings
    chunking: Chunking
    loss: LossSettings
    data: DataSettings
    checkpoints: CheckpointSettings
    watch: WatchSettings
    evaluation: EvaluationSettings | None

    @property
    def optimizer(self) -> OptimizerSettings:
        """AdamW, a part of the engine."""
        return self.engine.optimizer

    @property
    def cluster(self) -> ClusterSettings:
        """The ranks, a part of the engine."""
        return self.engine.cluster

    @property
    def seed(self) -> int:
        """Of the order, the initial adapter and dropout."""
        return self.data.seed

    @property
    def flags(self) -> dict[str, Any]:
        """The flags by name, as checkpoints record them."""
        return self.arguments.as_dict()

    def with_model(self, model_settings: ModelSettings, lora_targets: Sequence[str] | None = None) -> RunSettings:
        """With what the model's folder and family say where the flags do not.

        Args:
            model_settings: What is in force.
            lora_targets: The family's; None: not known yet.
        """
        model, lora = replace(self.arguments.model, max_len=model_settings.max_len), self.encoder.lora
        if lora is not None and lora.target_modules is None and lora_targets is not None:
            model = replace(model, lora_target_modules=",".join(lora_targets))
            lora = replace(lora, target_modules=tuple(lora_targets))
        arguments = replace(self.arguments, model=model)
        encoder = replace(
            self.encoder,
            max_len=model_settings.max_len,
            image_limits=model_settings.image_limits,
            prompt_format=model_settings.prompt_format,
            lora=lora,
        )
        return replace(self, arguments=arguments, encoder=encoder)

    def with_length(self, steps_per_epoch: int) -> RunSettings:
        """With all steps and those of the warm-up as numbers, see `RunArguments.with_steps`.

        Raises:
            InputError: A flag that names a step behind the last one.
        """
        arguments = self.arguments.with_steps(steps_per_epoch)
        return replace(self, arguments=arguments, schedule=schedule_settings(arguments.training))

    def with_chunks(self, sizes: ChunkSizes) -> RunSettings:
        """With the chunks' budgets and kept graphs as they were decided on the device."""
        return replace(self, chunking=self.chunking.measured(sizes))


def argument_defaults() -> dict[str, Any]:
    """All arguments by flag name with their defaults; those without one are empty."""
    return RunArguments(ModelArguments(""), DataArguments(""), TrainingArguments("", "")).as_dict()


def parse_arguments(argv: Sequence[str], defaults: Sequence[str] = (), also_known: Iterable[str] = ()) -> RunArguments:
    """Parses flags; `--config FILE.yaml` supplies flags that are not given, `defaults` those that neither gives.

    Args:
        argv: The flags.
        defaults: Flags that a recipe and `argv` may replace.
        also_known: Flags that the caller has taken out of `argv`, to be suggested for mistyped ones.

    Raises:
        InputError: An unknown flag or key, a wrong type, a refused combination; the message names the remedy.
    """
    parser = training_parser()
    parser.refuse_unknown(argv, also_known)
    path = _config_path(argv)
    recipe = recipe_flags(path, parser, argv)
    *groups, rest = parser.parse_args_into_dataclasses(
        [*defaults, *recipe, *argv], return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        raise InputError(f"unknown option {rest[0]}; {parser.prog} --help lists the options")
    sources = dict.fromkeys(given_names(parser, recipe), "recipe") | dict.fromkeys(given_names(parser, argv), "flag")
    model, data, training, evaluation, others = groups
    if others.print_config:
        raise InputError("--print_config: no effect here; python -m vlm2vec.train takes it")
    arguments = RunArguments(model, data, training, evaluation, sources, path)
    _check(arguments)
    return arguments


def _config_path(argv: Sequence[str]) -> Path | None:
    for index, word in enumerate(argv):
        if word == "--config" and index + 1 < len(argv):
            return Path(os.path.expanduser(argv[index + 1]))
        if word.startswith("--config="):
            return Path(os.path.expanduser(word.removeprefix("--config=")))
    return None


def _mined_refusals(data: DataArguments, training: TrainingArguments) -> list[Refusal]:
    """Flags that need hard negatives or a teacher."""
    asks_teacher = training.false_negative_source == TEACHER
    return [
        no_effect(
            given(training, ["hard_negative_scope"]),
            "without hard negatives; add --hard_negatives or --mined_negatives",
            when=not (training.hard_negatives or data.mined_negatives),
        ),
        (
            asks_teacher and data.mined is None,
            f"--false_negative_source {TEACHER}: give --mined, the folder in which data_prep.mine wrote the negatives "
            "that its teacher finds too similar",
        ),
        no_effect(
            given(training, ["distill_weight"]),
            "without --mined_negatives, the candidates that the teacher scored",
            when=not data.mined_negatives,
        ),
        no_effect(
            given(data, ["mined"]),
            f"without --mined_negatives, --mined_clusters or --false_negative_source {TEACHER}",
            when=not (data.mined_negatives or data.mined_clusters or asks_teacher),
        ),
    ]


def _check(arguments: RunArguments) -> None:
    """Refuses values that cannot work or would be ignored, group by group, then combinations of two groups.

    Raises:
        InputError: With the remedy.
    """
    model, data, training, evaluation = arguments.model, arguments.data, arguments.training, arguments.evaluation
    model.refuse_impossible_limits()
    for group in (model, data, training, evaluation):
        refuse(unused_refusals(group))
    refuse(model_refusals(model))
    refuse(data_refusals(data))
    mixture_weights(data.mixture_weights)
    refuse(evaluation_refusals(evaluation))
    refuse(training_refusals(training))
    refuse(
        [
            *_mined_refusals(data, training),
            (
                model.compile_layers and training.flops_profile_step is not None,
                f"--flops_profile_step {training.flops_profile_step}: the profile does not see "
                "compiled operators; leave out --compile_layers",
            ),
        ]
    )
