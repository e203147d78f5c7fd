"""From a run's settings to its parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
import transformers
from peft import PeftModel
from torch import Tensor

from vlm2vec import __version__
from vlm2vec.batches import ChunkSizes, GlobalOrder
from vlm2vec.compiling import compile_layers
from vlm2vec.contrastive import CachedStep, ContrastiveLoss, LearnedTemperature, has_dropout
from vlm2vec.contrastive.watch import Watch
from vlm2vec.device import describe_device
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.messages.words import counted
from vlm2vec.model_folder.settings import STORED, ChangedSettingWarning, ModelSettings
from vlm2vec.phi3_v.checkpoint import resolve_folder
from vlm2vec.shards import ShardSet
from vlm2vec.training.bad_samples import BadSamples
from vlm2vec.training.checkpoints.record import RunRecord
from vlm2vec.training.data import fingerprints, order_remarks
from vlm2vec.training.flags.run import RunSettings
from vlm2vec.training.preflight.graph_memory import graphs_that_fit, largest_chunk
from vlm2vec.training.settings import (
    Chunking,
    EncoderSettings,
    LossSettings,
    OptimizerSettings,
    Precision,
    ScheduleSettings,
)

RECORDED_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "webdataset")


def with_model_settings(settings: RunSettings) -> tuple[RunSettings, list[str]]:
    """The settings, with what the model was saved with where the flags say nothing.

    Returns:
        The settings, and a line for every flag that differs from what the model was saved with.

    Raises:
        InputError: The model's settings are damaged, or a flag is impossible.
    """
    encoder = settings.encoder
    given = {name: getattr(encoder, name) for name in ("max_len", "num_crops", "normalize")}
    given = {name: value for name, value in given.items() if value is not None}
    stored, changes = ModelSettings.read(resolve_folder(encoder.model_name)).with_arguments(**given)
    return settings.with_model(stored.max_len, stored.num_crops), changes


def build_encoder(settings: EncoderSettings) -> VLM2Vec:
    """The encoder of a run, the same on every rank.

    Raises:
        InputError: The model cannot be loaded, is an adapter, or nothing of it would be trained.
    """
    transformers.utils.logging.disable_progress_bar()  # a bar a rank would only tangle
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChangedSettingWarning)  # the run says it once, see `with_model_settings`
        encoder = VLM2Vec.from_pretrained(
            settings.model_name,
            num_crops=settings.num_crops,
            max_len=STORED if settings.max_len is None else settings.max_len,
            # ZeRO copies its master weights from the bfloat16 ones: loading float32 would only cost host memory.
            dtype=settings.precision.frozen,
            attn_implementation=settings.attn_implementation,
            normalize=settings.normalize,
        )
    if isinstance(encoder.backbone, PeftModel):
        raise InputError(
            f"--model_name {settings.model_name}: is an adapter, and training starts from a whole model: merge it "
            "first (VLM2Vec.from_pretrained, merge_lora, save_pretrained; of a run of this program: python -m "
            "vlm2vec.export with --merge_lora)"
        )
    encoder = prepare_encoder(encoder, settings, settings.gradient_checkpointing)
    if settings.compile_layers:
        compile_layers(encoder)
    return encoder


def prepare_encoder(encoder: VLM2Vec, settings: EncoderSettings, gradient_checkpointing: bool) -> VLM2Vec:
    """Frozen parts, adapter, gradient checkpointing: makes an encoder the one that is trained.

    Raises:
        InputError: No adapter can be made as the settings ask for, see `VLM2Vec.add_lora`.
    """
    encoder.freeze(vision_tower=settings.freeze_vision_tower, projector=settings.freeze_projector)
    if settings.lora is not None:
        try:
            encoder.add_lora(settings.lora)
        except InputError as error:
            frozen = ", --freeze_vision_tower" if settings.freeze_vision_tower else ""
            raise InputError(f"--lora{frozen}: {error}") from error
    if gradient_checkpointing:
        encoder.gradient_checkpointing_enable()
    return encoder.train()


def encoder_inputs(precision: Precision, encoder: VLM2Vec) -> ItemEncoderInputs:
    """What makes the encoder's inputs, in the dtype that it computes in."""
    return ItemEncoderInputs(encoder.processor, encoder.max_len, precision.compute)


def build_step(
    settings: LossSettings,
    engine: Any,
    encoder: VLM2Vec,
    inputs: ItemEncoderInputs,
    temperature: LearnedTemperature | None,
    watch: Watch,
) -> CachedStep:
    """The cached step of a run."""
    loss = contrastive_loss(settings, temperature, encoder.hidden_size)
    return CachedStep(engine, loss, inputs.padding_chunk(), watch=watch)


def chunk_sizes(
    settings: Chunking,
    engine: Any,
    encode: Callable[[Any, dict[str, Any]], Tensor],
    inputs: ItemEncoderInputs,
    kept_before: int | None = None,
) -> ChunkSizes:
    """How items become chunks; kept graphs are decided here, by a look at the device's memory.

    Args:
        settings: The run's.
        engine: The DeepSpeed engine.
        encode: One engine call, `CachedStep.model_call`.
        inputs: Makes the chunk that is measured.
        kept_before: What `--keep_graphs auto` was before a resume on the same ranks with the same chunks.

    Raises:
        InputError: A budget without a graph that dropout does not allow.
    """
    no_grad_tokens = settings.no_grad_budget(has_dropout(engine.module))
    if settings.keep_graphs is not None:
        keep_graphs = settings.keep_graphs
    elif kept_before is not None:
        keep_graphs = kept_before
    elif engine.device.type == "cpu":
        keep_graphs = 1  # a process's memory on the host says nothing about its tensors
    else:
        keep_graphs = graphs_that_fit(engine, encode, largest_chunk(inputs, settings.packing))
    return ChunkSizes(settings.packing, no_grad_tokens, keep_graphs)


def schedule(settings: ScheduleSettings, optimizer: Any) -> Any:
    """The learning-rate schedule of an optimizer, by transformers' names."""
    try:
        return transformers.get_scheduler(settings.kind, optimizer, settings.warmup_steps, settings.max_steps)
    except ValueError as error:
        raise InputError(f"--lr_scheduler_type {settings.kind}: {error}") from error


def learned_temperature(
    settings: LossSettings, optimizer: OptimizerSettings, device: torch.device
) -> LearnedTemperature | None:
    """A temperature to train, or None if it is fixed."""
    if settings.temperature_learning_rate is None:
        return None
    try:
        return LearnedTemperature(settings.temperature, betas=optimizer.betas, device=device)
    except ValueError as error:
        raise InputError(f"--temperature {settings.temperature} with --learn_temperature: {error}") from error


def contrastive_loss(settings: LossSettings, temperature: LearnedTemperature | None, width: int) -> ContrastiveLoss:
    """The loss; `width` is that of the embeddings."""
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
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def versions() -> dict[str, str]:
    """Of this code and the packages that matter."""
    return {"vlm2vec": __version__, **{name: version(name) for name in RECORDED_PACKAGES}}


def run_record(
    step: int,
    settings: RunSettings,
    engine: Any,
    shards: ShardSet,
    order: GlobalOrder,
    temperature: LearnedTemperature | None,
    bad_samples: BadSamples,
    keep_graphs: int,
) -> RunRecord:
    """What the checkpoint after `step` steps says of its run."""
    return RunRecord(
        step=step,
        num_ranks=dist.get_world_size(),
        zero_stage=int(engine.zero_optimization_stage()),
        arguments=settings.flags,
        versions=versions(),
        data=fingerprints(shards, order),
        temperature=temperature.state_dict() if temperature is not None else None,
        bad_samples=bad_samples.record,
        keep_graphs=keep_graphs,
    )


def run_device(encoder: VLM2Vec, engine: Any) -> str:
    """Device, backend, attention and optimizer of a run."""
    attention = encoder.base.config._attn_implementation
    return str(describe_device(engine.device, dist.get_backend(), attention, engine.basic_optimizer))


def summary(settings: RunSettings, encoder: VLM2Vec, shards: ShardSet, order: GlobalOrder, engine: Any) -> str:
    """What is about to run, in one line."""
    # Under ZeRO-3 a parameter here is empty and carries its size as ds_numel.
    sizes = [(getattr(each, "ds_numel", each.numel()), each.requires_grad) for each in encoder.parameters()]
    total, trainable = sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
    subsets = counted(len(shards.subsets), "subset")
    return (
        f"{run_device(encoder, engine)} | {settings.cluster.num_ranks} rank(s), ZeRO-{settings.cluster.zero_stage} | "
        f"{total:,} parameters, {trainable:,} trainable | {sum(order.sizes):,} pairs of {subsets} | "
        f"global batch {order.global_batch_size}, {order.steps_per_epoch} steps an epoch, "
        f"{settings.schedule.max_steps} steps"
        f"{order_remarks(order)}"
    )
