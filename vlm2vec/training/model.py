"""What a run trains: the encoder in its engine, and the cached step with its loss."""

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
    """What makes the inputs of a run's encoder, in the dtype that it computes in."""
    always_dummy = encoder.base.trains_images_alone
    return ItemEncoderInputs(encoder.processor, encoder.max_len, settings.precision.compute, always_dummy)


@dataclass(frozen=True)
class TrainedModel:
    """The encoder and all that trains it.

    Attributes:
        encoder: Whose weights are trained.
        engine: The DeepSpeed engine around it.
        inputs: Makes its inputs, in the dtype that it computes in.
        temperature: The loss's learned one; None: it is fixed.
        step: One global batch's gradient.
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
            settings: The run's.
            encoder: As `build_encoder` returns it.
            loads_universal: As in `build_engine`.
            watch: Follows the step.
            step_type: What runs a step's chunks.
            temperatures: Names of the groups of rows that learn a temperature each; empty: all learn one.

        Raises:
            InputError: A schedule, temperature or dimension that cannot be.
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
    """A temperature to train; None if it is fixed.

    Raises:
        InputError: It starts outside of its range.
    """
    if settings.temperature_learning_rate is None:
        return None
    try:
        return LearnedTemperature(settings.temperature, betas=optimizer.betas, device=device, groups=groups)
    except ValueError as error:
        raise InputError(f"--temperature {settings.temperature} with --learn_temperature: {error}") from error


def contrastive_loss(settings: LossSettings, temperature: LearnedTemperature | None, width: int) -> ContrastiveLoss:
    """The loss; `width` is that of the embeddings.

    Raises:
        InputError: A dimension of --matryoshka_dims that embeddings do not have, or settings that exclude each other.
    """
    too_wide = [dimension for dimension in settings.matryoshka_dims if dimension > width]
    if too_wide:
        raise InputError(f"--matryoshka_dims {too_wide[0]}: the model's embeddings have {width} dimensions")
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
