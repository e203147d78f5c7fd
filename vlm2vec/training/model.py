"""Builds what a run trains: the encoder in its engine, the loss and the cached step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from vlm2vec.contrastive import CachedStep, ContrastiveLoss, LearnedTemperature
from vlm2vec.contrastive.watch import Watch
from vlm2vec.device import DeviceDescription, describe_device
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.training.engine import build_engine, schedule
from vlm2vec.training.flags.run import RunSettings
from vlm2vec.training.settings import EncoderSettings, LossSettings, OptimizerSettings


def encoder_inputs(encoder: VLM2Vec, settings: EncoderSettings) -> ItemEncoderInputs:
    """Builds the inputs of a run's encoder, in its compute dtype."""
    always_dummy = encoder.base.trains_images_alone
    return ItemEncoderInputs(encoder.processor, encoder.max_len, settings.precision.compute, always_dummy)


@dataclass(frozen=True)
class TrainedModel:
    """The encoder, its engine and its step.

    Attributes:
        encoder: The encoder whose weights are trained.
        engine: The DeepSpeed engine around it.
        inputs: Builds its inputs, in its compute dtype.
        temperature: The loss's learned temperature; None if it is fixed.
        step: Computes the gradient of one global batch.
    """

    encoder: VLM2Vec
    engine: Any
    inputs: ItemEncoderInputs
    temperature: LearnedTemperature | None
    step: CachedStep

    @classmethod
    def build(
        cls,
        settings: RunSettings,
        encoder: VLM2Vec,
        loads_universal: bool,
        watch: Watch,
        step_type: type[CachedStep] = CachedStep,
        temperatures: Sequence[str] = (),
    ) -> TrainedModel:
        """Builds the engine and the step around the encoder; all ranks call it.

        Args:
            settings: Settings of the run.
            encoder: The encoder from `build_encoder`.
            loads_universal: See `build_engine`.
            watch: Follows the step.
            step_type: Class of the step.
            temperatures: Names of the groups of rows that learn one temperature each; empty if all rows share one.

        Raises:
            InputError: A schedule, temperature or dimension is invalid.
        """
        engine = build_engine(encoder, settings.engine, partial(schedule, settings.schedule), loads_universal)
        inputs = encoder_inputs(encoder, settings.encoder)
        temperature = learned_temperature(settings.loss, settings.optimizer, engine.device, temperatures)
        loss = contrastive_loss(settings.loss, temperature, encoder.hidden_size)
        step = step_type(engine, loss, inputs.padding_chunk(), watch=watch)
        return cls(encoder, engine, inputs, temperature, step)

    @property
    def device(self) -> DeviceDescription:
        """Device, backend, attention and optimizer."""
        attention = self.encoder.base.config._attn_implementation
        return describe_device(self.engine.device, dist.get_backend(), attention, self.engine.basic_optimizer)


def learned_temperature(
    settings: LossSettings, optimizer: OptimizerSettings, device: torch.device, groups: Sequence[str] = ()
) -> LearnedTemperature | None:
    """Builds a learned temperature; None if it is fixed.

    Raises:
        InputError: Its initial value is out of range.
    """
    if settings.temperature_learning_rate is None:
        return None
    try:
        return LearnedTemperature(settings.temperature, betas=optimizer.betas, device=device, groups=groups)
    except ValueError as error:
        raise InputError(f"--temperature {settings.temperature} with --learn_temperature: {error}") from error


def contrastive_loss(settings: LossSettings, temperature: LearnedTemperature | None, width: int) -> ContrastiveLoss:
    """Builds the loss for embeddings of dimension `width`.

    Raises:
        InputError: A dimension of --matryoshka_dims exceeds `width`, or settings exclude each other.
    """
    too_wide = [dimension for dimension in settings.matryoshka_dims if dimension > width]
    if too_wide:
        raise InputError(f"--matryoshka_dims {too_wide[0]}: must be at most {width}, the dimension of the embeddings")
    try:
        return ContrastiveLoss(
            temperature or settings.temperature,
            settings.mask_false_negatives,
            settings.block_rows,
            bidirectional=settings.bidirectional,
            matryoshka_dims=settings.matryoshka_dims,
            negatives=settings.negatives,
            distillation=settings.distillation,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
