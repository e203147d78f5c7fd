"""From a run's arguments to its parts: what is `auto`, absent or dependent is decided here."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
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
from vlm2vec.inputs.packing import FixedCounts, Packing, TokenBudget
from vlm2vec.lora import LoraSettings
from vlm2vec.messages.words import counted
from vlm2vec.model_folder.settings import STORED, ChangedSettingWarning, ModelSettings
from vlm2vec.phi3_v.checkpoint import resolve_folder
from vlm2vec.shards import ShardSet
from vlm2vec.training.bad_samples import BadSamples
from vlm2vec.training.checkpoints.record import RunRecord
from vlm2vec.training.data import fingerprints, order_remarks
from vlm2vec.training.flags.run import RunArguments
from vlm2vec.training.flags.training import DEFAULT_CHUNK_TOKENS, NO_GRAD_FACTOR
from vlm2vec.training.preflight.graph_memory import graphs_that_fit, largest_chunk

RECORDED_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "webdataset")


def with_model_settings(arguments: RunArguments) -> tuple[RunArguments, list[str]]:
    """The arguments, with what the model was saved with where they say nothing.

    Returns:
        The arguments, and a line for every one that differs from what the model was saved with.

    Raises:
        InputError: The model's settings are damaged, or an argument is impossible.
    """
    model = arguments.model
    given = {name: getattr(model, name) for name in ("max_len", "num_crops", "normalize")}
    given = {name: value for name, value in given.items() if value is not None}
    settings, changes = ModelSettings.read(resolve_folder(model.model_name)).with_arguments(**given)
    return replace(arguments, model=replace(model, max_len=settings.max_len)), changes


def build_encoder(arguments: RunArguments) -> VLM2Vec:
    """The encoder that the arguments ask for, the same on every rank.

    Raises:
        InputError: The model cannot be loaded, is an adapter, or nothing of it would be trained.
    """
    model = arguments.model
    transformers.utils.logging.disable_progress_bar()  # a bar a rank would only tangle
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChangedSettingWarning)  # the run says it once, see `with_model_settings`
        encoder = VLM2Vec.from_pretrained(
            model.model_name,
            num_crops=model.num_crops,
            max_len=STORED if model.max_len is None else model.max_len,
            # ZeRO copies its master weights from the bfloat16 ones: loading float32 would only cost host memory.
            dtype=_compute_dtype(arguments),
            attn_implementation=model.attn_implementation,
            normalize=model.normalize,
        )
    if isinstance(encoder.backbone, PeftModel):
        raise InputError(
            f"--model_name {model.model_name}: is an adapter, and training starts from a whole model: merge it first "
            "(VLM2Vec.from_pretrained, merge_lora, save_pretrained; of a run of this program: python -m vlm2vec.export "
            "with --merge_lora)"
        )
    encoder = prepare_encoder(encoder, arguments, model.gradient_checkpointing)
    if model.compile_layers:
        compile_layers(encoder)
    return encoder


def prepare_encoder(encoder: VLM2Vec, arguments: RunArguments, gradient_checkpointing: bool) -> VLM2Vec:
    """Frozen parts, adapter, gradient checkpointing: makes an encoder the one that is trained.

    Raises:
        InputError: No adapter can be made as the arguments ask for, see `VLM2Vec.add_lora`.
    """
    model = arguments.model
    encoder.freeze(vision_tower=model.freeze_vision_tower, projector=model.freeze_projector)
    if model.lora:
        settings = LoraSettings(
            r=model.lora_r,
            alpha=model.lora_alpha,
            dropout=model.lora_dropout,
            dropout_on=model.lora_dropout_on,
            target_modules=[name.strip() for name in model.lora_target_modules.split(",") if name.strip()],
            use_dora=model.lora_use_dora,
            seed=arguments.training.seed,
        )
        try:
            encoder.add_lora(settings)
        except InputError as error:
            frozen = ", --freeze_vision_tower" if model.freeze_vision_tower else ""
            raise InputError(f"--lora{frozen}: {error}") from error
    if gradient_checkpointing:
        encoder.gradient_checkpointing_enable()
    return encoder.train()


def encoder_inputs(arguments: RunArguments, encoder: VLM2Vec) -> ItemEncoderInputs:
    """What makes the encoder's inputs, in the dtype that it computes in."""
    return ItemEncoderInputs(encoder.processor, encoder.max_len, _compute_dtype(arguments))


def build_step(
    arguments: RunArguments,
    engine: Any,
    encoder: VLM2Vec,
    inputs: ItemEncoderInputs,
    temperature: LearnedTemperature | None,
    watch: Watch,
) -> CachedStep:
    """The cached step of a run."""
    loss = contrastive_loss(arguments, temperature, encoder.hidden_size)
    return CachedStep(engine, loss, inputs.padding_chunk(), watch=watch)


def _compute_dtype(arguments: RunArguments) -> torch.dtype:
    return torch.bfloat16 if arguments.model.bf16 else torch.float32


def chunk_sizes(
    arguments: RunArguments,
    engine: Any,
    encode: Callable[[Any, dict[str, Any]], Tensor],
    inputs: ItemEncoderInputs,
    kept_before: int | None = None,
) -> ChunkSizes:
    """How items become chunks; `auto` and absent values are decided here, by a look at the device's memory.

    Args:
        arguments: The run's arguments.
        engine: The DeepSpeed engine.
        encode: One engine call, `CachedStep.model_call`.
        inputs: Makes the chunk that is measured.
        kept_before: What `--keep_graphs auto` was before a resume on the same ranks with the same chunks.
    """
    training = arguments.training
    chunk_tokens = training.chunk_tokens or DEFAULT_CHUNK_TOKENS
    packing: Packing = TokenBudget(chunk_tokens)
    if training.gc_q_chunk_size and training.gc_p_chunk_size:
        packing = FixedCounts(training.gc_q_chunk_size, training.gc_p_chunk_size)
    if training.keep_graphs != "auto":
        keep_graphs = int(training.keep_graphs)
    elif kept_before is not None:
        keep_graphs = kept_before
    elif engine.device.type == "cpu":
        keep_graphs = 1  # a process's memory on the host says nothing about its tensors
    else:
        keep_graphs = graphs_that_fit(engine, encode, largest_chunk(inputs, packing))
    if isinstance(packing, FixedCounts):
        return ChunkSizes(packing, None, keep_graphs)
    if not has_dropout(engine.module):
        no_grad_tokens = training.no_grad_chunk_tokens or NO_GRAD_FACTOR * chunk_tokens
    elif training.no_grad_chunk_tokens is None:
        no_grad_tokens = None
    else:
        raise InputError(
            f"--no_grad_chunk_tokens {training.no_grad_chunk_tokens}: with dropout, pass 1 must run the chunks of pass "
            "2, whose masks it shares; leave it out, or set --lora_dropout 0"
        )
    return ChunkSizes(packing, no_grad_tokens, keep_graphs)


def schedule(arguments: RunArguments, optimizer: Any) -> Any:
    """The learning-rate schedule of an optimizer, by transformers' names."""
    training = arguments.training
    try:
        return transformers.get_scheduler(
            training.lr_scheduler_type, optimizer, training.warmup_steps, training.max_steps
        )
    except ValueError as error:
        raise InputError(f"--lr_scheduler_type {training.lr_scheduler_type}: {error}") from error


def learned_temperature(arguments: RunArguments, device: torch.device) -> LearnedTemperature | None:
    """A temperature to train, or None if it is fixed."""
    training = arguments.training
    if not training.learn_temperature:
        return None
    try:
        return LearnedTemperature(training.temperature, betas=(training.adam_beta1, training.adam_beta2), device=device)
    except ValueError as error:
        raise InputError(f"--temperature {training.temperature} with --learn_temperature: {error}") from error


def contrastive_loss(arguments: RunArguments, temperature: LearnedTemperature | None, width: int) -> ContrastiveLoss:
    """The loss; `width` is that of the embeddings."""
    training = arguments.training
    too_wide = [dimension for dimension in training.matryoshka_dims if dimension > width]
    if too_wide:
        raise InputError(f"--matryoshka_dims {too_wide[0]}: the model's embeddings have {width} dimensions")
    try:
        return ContrastiveLoss(
            temperature or training.temperature,
            training.mask_false_negatives,
            training.loss_block_rows,
            bidirectional=training.bidirectional,
            matryoshka_dims=training.matryoshka_dims,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def run_record(
    step: int,
    arguments: RunArguments,
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
        arguments=arguments.as_dict(),
        versions={"vlm2vec": __version__, **{name: version(name) for name in RECORDED_PACKAGES}},
        data=fingerprints(shards, order),
        temperature=temperature.state_dict() if temperature is not None else None,
        bad_samples=bad_samples.record,
        keep_graphs=keep_graphs,
    )


def run_device(encoder: VLM2Vec, engine: Any) -> str:
    """Device, backend, attention and optimizer of a run."""
    attention = encoder.base.config._attn_implementation
    return str(describe_device(engine.device, dist.get_backend(), attention, engine.basic_optimizer))


def summary(
    arguments: RunArguments, encoder: VLM2Vec, shards: ShardSet, order: GlobalOrder, engine: Any, num_ranks: int
) -> str:
    """What is about to run, in one line."""
    # Under ZeRO-3 a parameter here is empty and carries its size as ds_numel.
    sizes = [(getattr(each, "ds_numel", each.numel()), each.requires_grad) for each in encoder.parameters()]
    total, trainable = sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
    subsets = counted(len(shards.subsets), "subset")
    return (
        f"{run_device(encoder, engine)} | {num_ranks} rank(s), ZeRO-{int(engine.zero_optimization_stage())} | "
        f"{total:,} parameters, {trainable:,} trainable | {sum(order.sizes):,} pairs of {subsets} | "
        f"global batch {order.global_batch_size}, {order.steps_per_epoch} steps an epoch, "
        f"{arguments.training.max_steps} steps"
        f"{order_remarks(order)}"
    )
