"""From a group of flags to the group of settings in force (training/settings.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm2vec.batches import Mixture
from vlm2vec.choices import LoraSettings
from vlm2vec.contrastive import Distillation, Negatives
from vlm2vec.inputs.packing import FixedCounts, TokenBudget
from vlm2vec.training.flags.checkpoint import NONE
from vlm2vec.training.flags.data import ALL, DataArguments, mixture_weights
from vlm2vec.training.flags.evaluation import EvaluationArguments
from vlm2vec.training.flags.model import ModelArguments
from vlm2vec.training.flags.option import Refusal
from vlm2vec.training.flags.training import AUTO, DEFAULT_CHUNK_TOKENS, OWN_ROW, TEACHER, TrainingArguments
from vlm2vec.training.flags.watch import NO_TRACKER
from vlm2vec.training.settings import (
    CheckpointSettings,
    Chunking,
    ClusterSettings,
    DataSettings,
    EncoderSettings,
    EngineSettings,
    EvaluationSettings,
    LossSettings,
    MinedSettings,
    OptimizerSettings,
    Precision,
    ScheduleSettings,
    WatchSettings,
)


def encoder_settings(model: ModelArguments, training: TrainingArguments) -> EncoderSettings:
    """The encoder."""
    targets = model.lora_target_modules
    lora = LoraSettings(
        r=model.lora_r,
        alpha=model.lora_alpha,
        dropout=model.lora_dropout,
        dropout_on=model.lora_dropout_on,
        target_modules=None if targets is None else tuple(name for name in targets.split(",") if name),
        use_dora=model.lora_use_dora,
        seed=training.seed,
    )
    return EncoderSettings(
        model_name=model.model_name,
        max_len=model.max_len,
        image_limits=model.image_limits,
        prompt_format=model.prompt_format,
        normalize=model.normalize,
        attn_implementation=model.attn_implementation,
        gradient_checkpointing=model.gradient_checkpointing,
        compile_layers=model.compile_layers,
        deterministic=training.deterministic,
        freeze_vision_tower=model.freeze_vision_tower,
        freeze_projector=model.freeze_projector,
        precision=Precision.of(model.bf16, model.lora),
        lora=lora if model.lora else None,
    )


def chunk_settings(training: TrainingArguments) -> Chunking:
    """How items become chunks."""
    packing: TokenBudget | FixedCounts = TokenBudget(training.chunk_tokens or DEFAULT_CHUNK_TOKENS)
    if training.gc_q_chunk_size and training.gc_p_chunk_size:
        packing = FixedCounts(training.gc_q_chunk_size, training.gc_p_chunk_size)
    keep_graphs = None if training.keep_graphs == AUTO else int(training.keep_graphs)
    return Chunking(packing, training.no_grad_chunk_tokens, keep_graphs)


def loss_settings(training: TrainingArguments) -> LossSettings:
    """The loss."""
    return LossSettings(
        temperature=training.temperature,
        temperature_learning_rate=training.temperature_learning_rate if training.learn_temperature else None,
        bidirectional=training.bidirectional,
        matryoshka_dims=tuple(training.matryoshka_dims),
        mask_false_negatives=training.mask_false_negatives,
        block_rows=training.loss_block_rows,
        temperature_by=None if training.temperature_by == NONE else training.temperature_by,
        negatives=Negatives(
            training.hardness_weight,
            training.false_negative_similarity,
            training.false_negative_margin,
            own_rows_only=training.hard_negative_scope == OWN_ROW,
        ),
        distillation=Distillation(training.distill_weight, training.distill_temperature)
        if training.distill_weight
        else None,
    )


def optimizer_settings(training: TrainingArguments) -> OptimizerSettings:
    """AdamW."""
    return OptimizerSettings(
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        betas=(training.adam_beta1, training.adam_beta2),
        epsilon=training.adam_epsilon,
        max_grad_norm=training.max_grad_norm,
    )


def schedule_settings(training: TrainingArguments) -> ScheduleSettings:
    """Steps and learning rate; 0 steps until the data are known, where epochs were asked for."""
    return ScheduleSettings(training.lr_scheduler_type, training.max_steps, training.warmup_steps)


def data_settings(data: DataArguments, training: TrainingArguments, global_batch_size: int) -> DataSettings:
    """The data."""
    mixture = Mixture(
        unit=data.homogeneous_batch_size,
        weights=mixture_weights(data.mixture_weights),
        temperature=data.mixture_temperature,
        max_samples=data.num_sample_per_subset,
        first_samples=data.first_n,
        order=data.order,
        distinct_positives=data.no_duplicate_positives,
        groups=data.homogeneous_groups,
    )
    return DataSettings(
        dataset_name=data.dataset_name,
        subsets=None if data.subset_name == [ALL] else tuple(data.subset_name),
        mixture=mixture,
        seed=training.seed,
        global_batch_size=global_batch_size,
        hard_negatives=training.hard_negatives,
        mined=mined_settings(data, training),
        max_bad_samples=data.max_bad_samples,
        num_workers=data.dataloader_num_workers,
        cache_dir=None if data.cache_dir is None else Path(data.cache_dir),
        cache_bytes=round(data.cache_gb * 1e9),
    )


def mined_settings(data: DataArguments, training: TrainingArguments) -> MinedSettings | None:
    """The sidecar."""
    if data.mined is None:
        return None
    return MinedSettings(
        Path(data.mined),
        data.mined_negatives,
        data.mined_clusters,
        false_negatives=training.false_negative_source == TEACHER,
        scores=training.distill_weight > 0,
    )


def checkpoint_settings(training: TrainingArguments, keeps_best: bool, lora: bool) -> CheckpointSettings:
    """Checkpoints."""
    return CheckpointSettings(
        output_dir=Path(training.output_dir),
        every=training.save_steps,
        limit=training.save_total_limit,
        resume=None if training.resume == NONE else training.resume,
        allow_changed=tuple(training.allow_changed),
        keeps_best=keeps_best,
        excludes_frozen=lora,
    )


def watch_settings(training: TrainingArguments) -> WatchSettings:
    """Log lines and profiles."""
    return WatchSettings(
        logging_steps=training.logging_steps,
        report_to=tuple(name for name in training.report_to if name != NO_TRACKER),
        project=training.project,
        profile_steps=tuple(training.profile_steps),
        flops_profile_step=training.flops_profile_step,
        peak_tflops=training.peak_tflops,
    )


def evaluation_settings(evaluation: EvaluationArguments) -> EvaluationSettings | None:
    """Scores during training; None for a run that is not scored."""
    if evaluation.eval_steps is None:
        return None
    assert evaluation.eval_dataset_name is not None
    assert evaluation.eval_image_dir is not None
    return EvaluationSettings(
        every=evaluation.eval_steps,
        dataset_name=evaluation.eval_dataset_name,
        image_dir=evaluation.eval_image_dir,
        allow_links=evaluation.eval_allow_links,
        subsets=tuple(evaluation.eval_subsets),
        saves_best=evaluation.save_best,
    )


def engine_settings(
    model: ModelArguments,
    training: TrainingArguments,
    engine_file: Mapping[str, Any],
    num_ranks: int,
    global_batch_size: int,
) -> EngineSettings:
    """DeepSpeed's engine, with the ranks that it runs on."""
    return EngineSettings(
        file=engine_file,
        precision=Precision.of(model.bf16, model.lora),
        optimizer=optimizer_settings(training),
        cluster=ClusterSettings(
            num_ranks=num_ranks,
            zero_stage=int(engine_file["zero_optimization"]["stage"]),
            global_batch_size=global_batch_size,
            step_timeout=training.step_timeout,
            collective_timeout=training.collective_timeout,
        ),
    )


def stage_refusals(model: ModelArguments, training: TrainingArguments, zero_stage: int) -> list[Refusal]:
    """What cannot work under a ZeRO stage."""
    return [
        (
            training.flops_profile_step is not None and zero_stage == 3,
            f"--flops_profile_step {training.flops_profile_step}: DeepSpeed's flops profiler miscounts under ZeRO-3; "
            "profile the same step with ds_configs/zero2.json",
        ),
    ]
