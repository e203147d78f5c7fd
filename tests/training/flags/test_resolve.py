"""The settings in force, decided once from the flags, the ranks and the engine file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.batches import ChunkSizes
from vlm2vec.choices import META_TASK, LoraSettings
from vlm2vec.contrastive import Distillation, Negatives
from vlm2vec.contrastive.loss import BLOCK_SCORES
from vlm2vec.errors import InputError
from vlm2vec.inputs.packing import FixedCounts, TokenBudget
from vlm2vec.model_folder.settings import ModelSettings
from vlm2vec.training.engine import engine_config
from vlm2vec.training.flags.run import RunSettings, parse_arguments
from vlm2vec.training.flags.training import NO_GRAD_FACTOR
from vlm2vec.training.settings import MinedSettings, Precision
from vlm2vec.training.watch.metrics import DIVERGENCE, MASKED_SIMILAR, optional_metrics

NEEDED = ["--model_name", "m", "--dataset_name", "d", "--output_dir", "o", "--deepspeed", "z.json"]
STEPS = ["--max_steps", "9"]
BF16, FP32 = torch.bfloat16, torch.float32


def settings(*flags: str, num_ranks: int = 2, stage: int = 2, steps: list[str] = STEPS) -> RunSettings:
    batch = [] if "--per_device_train_batch_size" in flags else ["--global_batch_size", "16"]
    return parse_arguments([*NEEDED, *batch, *steps, *flags]).resolve(
        num_ranks, {"zero_optimization": {"stage": stage}}
    )


@pytest.mark.parametrize(
    ("flags", "weights", "frozen", "compute", "autocast"),
    [
        ([], FP32, FP32, FP32, False),
        (["--lora"], FP32, FP32, FP32, False),
        (["--bf16"], BF16, BF16, BF16, False),
        (["--bf16", "--lora"], FP32, BF16, BF16, True),
    ],
)
def test_precision_follows_from_two_flags(
    flags: list[str], weights: torch.dtype, frozen: torch.dtype, compute: torch.dtype, autocast: bool
) -> None:
    made = settings(*flags)
    assert made.encoder.precision == Precision(weights, frozen, compute, autocast, gradients=FP32)
    config = engine_config(made.engine)
    # Gradients are summed and sent in float32: DeepSpeed does so with float32 weights, and must be told otherwise.
    casts = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    assert {name: config[name] for name in casts if name in config} == (casts if weights == BF16 else {})
    assert ("memory_efficient_linear" in config["zero_optimization"]) == (weights == BF16)


def test_an_adapters_defaults_are_those_of_the_library() -> None:
    assert settings().encoder.lora is None
    assert settings("--lora").encoder.lora == LoraSettings()
    assert settings("--lora", "--lora_target_modules", "o_proj, q_proj", "--seed", "5").encoder.lora == LoraSettings(
        target_modules=("o_proj", "q_proj"), seed=5
    )


def test_what_an_adapter_goes_on_is_the_familys_or_named_by_hand() -> None:
    """In force, and in the record that a resume compares; a run without an adapter records none."""
    made = settings("--lora").with_model(ModelSettings(), ("a", "b"))
    assert made.encoder.lora == LoraSettings(target_modules=("a", "b"))
    assert made.flags["lora_target_modules"] == "a,b"
    named = settings("--lora", "--lora_target_modules", "c").with_model(ModelSettings(), ("a", "b"))
    assert named.encoder.lora == LoraSettings(target_modules=("c",))
    assert named.flags["lora_target_modules"] == "c"
    without = settings().with_model(ModelSettings(), ("a", "b"))
    assert (without.encoder.lora, without.flags["lora_target_modules"]) == (None, None)


def test_chunks() -> None:
    made = settings().chunking
    assert (made.packing, made.no_grad_tokens, made.keep_graphs) == (TokenBudget(8192), None, None)
    assert made.no_grad_budget(has_dropout=False) == 8192 * NO_GRAD_FACTOR
    assert made.no_grad_budget(has_dropout=True) is None
    given = settings("--chunk_tokens", "100", "--no_grad_chunk_tokens", "150", "--keep_graphs", "0").chunking
    assert (given.packing, given.no_grad_budget(has_dropout=False), given.keep_graphs) == (TokenBudget(100), 150, 0)
    with pytest.raises(InputError, match="--no_grad_chunk_tokens 150: with dropout"):
        given.no_grad_budget(has_dropout=True)
    fixed = settings("--gc_q_chunk_size", "3", "--gc_p_chunk_size", "4").chunking
    assert fixed.packing == FixedCounts(3, 4)
    assert fixed.no_grad_budget(has_dropout=False) is None
    on_device = settings().with_chunks(ChunkSizes(TokenBudget(8192), 9000, 3))
    assert (on_device.chunking.no_grad_tokens, on_device.chunking.keep_graphs) == (9000, 3)


def test_the_batch_is_known_once_the_ranks_are() -> None:
    made = settings("--per_device_train_batch_size", "16", num_ranks=4, stage=3)
    assert (made.cluster.global_batch_size, made.data.global_batch_size, made.cluster.zero_stage) == (64, 64, 3)
    assert engine_config(made.engine)["train_micro_batch_size_per_gpu"] == 16
    assert settings().loss.rows_of_a_block(16, 2**20) == BLOCK_SCORES // 16
    assert settings("--loss_block_rows", "7").loss.rows_of_a_block(16, 16) == 7
    assert settings().loss.rows_of_a_block(16, 16) == 16  # no more than there are


def test_later_steps_fill_what_they_find() -> None:
    made = settings("--num_train_epochs", "2.5", "--warmup_ratio", "0.1", steps=[])
    assert made.schedule.max_steps == 0
    long = made.with_length(steps_per_epoch=11)
    assert (long.schedule.max_steps, long.schedule.warmup_steps) == (28, 3)
    assert (long.flags["max_steps"], long.flags["warmup_steps"], long.flags["num_train_epochs"]) == (28, 3, 2.5)
    own = PromptFormat(name="own", images="first")
    of_model = long.with_model(ModelSettings(max_len=77, num_crops=4, prompt_format=own))
    encoder = of_model.encoder
    assert (encoder.max_len, encoder.image_limits, encoder.prompt_format) == (77, {"num_crops": 4}, own)
    assert of_model.schedule == long.schedule
    # Limits and format of a checkpoint's record stay those that were asked for: older records have no others.
    assert [of_model.flags[name] for name in ("max_len", "num_crops", "prompt_format")] == [77, None, None]
    late = settings("--num_train_epochs", "1", "--profile_steps", "11", "12", steps=[])
    with pytest.raises(InputError, match="from 1 to --max_steps 11"):
        late.with_length(steps_per_epoch=11)


def test_what_is_not_asked_for_is_absent() -> None:
    made = settings()
    assert (made.evaluation, made.checkpoints.resume, made.data.subsets) == (None, None, None)
    assert made.loss.temperature_learning_rate is None
    asked = settings(
        *("--eval_steps", "5", "--eval_dataset_name", "e", "--eval_image_dir", "i", "--save_best", "--resume", "auto"),
        *("--subset_name", "A", "B", "--learn_temperature", "--mixture_weights", "A=2", "B=1"),
    )
    assert asked.evaluation is not None
    assert (asked.evaluation.every, asked.evaluation.saves_best, asked.checkpoints.keeps_best) == (5, True, True)
    assert (asked.checkpoints.resume, asked.data.subsets) == ("auto", ("A", "B"))
    assert asked.data.mixture.weights == {"A": 2, "B": 1}
    assert asked.loss.temperature_learning_rate == 1e-3
    assert (made.loss.temperature_by, made.loss.negatives, made.loss.distillation) == (None, Negatives(), None)
    assert optional_metrics(made.loss, made.data.mined) == []


def test_what_the_loss_takes_from_a_teacher_comes_from_the_sidecar() -> None:
    of_model = settings(
        "--hardness_weight", "9", "--false_negative_similarity", "0.95", "--false_negative_margin", "-.1"
    )
    assert of_model.loss.negatives == Negatives(9.0, 0.95, -0.1)
    assert of_model.data.mined is None
    assert optional_metrics(of_model.loss, None) == [MASKED_SIMILAR]
    of_teacher = settings(
        *(
            "--mined",
            "m",
            "--mined_negatives",
            "3",
            "--hard_negative_scope",
            "own",
            "--false_negative_source",
            "teacher",
        ),
        *("--distill_weight", "0.5", "--learn_temperature", "--temperature_by", "meta_task"),
    )
    assert of_teacher.loss.negatives == Negatives(own_rows_only=True)
    assert of_teacher.loss.distillation == Distillation(0.5, 0.02)
    assert of_teacher.loss.temperature_by == META_TASK
    assert of_teacher.data.mined == MinedSettings(Path("m"), 3, false_negatives=True, scores=True)
    assert optional_metrics(of_teacher.loss, of_teacher.data.mined) == [MASKED_SIMILAR, DIVERGENCE]
    alone = settings("--mined", "m", "--false_negative_source", "teacher").data.mined
    assert alone == MinedSettings(Path("m"), false_negatives=True)


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--flops_profile_step", "2"], r"--flops_profile_step 2: .* ZeRO-3; profile the same step with"),
    ],
)
def test_what_cannot_work_under_zero_3_is_refused(flags: list[str], remedy: str) -> None:
    settings(*flags)
    settings(stage=3)
    with pytest.raises(InputError, match=remedy):
        settings(*flags, stage=3)


def test_settings_are_frozen_and_compare_by_what_is_in_force() -> None:
    def frozen(value: Any) -> bool:
        parts = [getattr(value, each.name) for each in dataclasses.fields(value) if each.name != "arguments"]
        return value.__dataclass_params__.frozen and all(map(frozen, filter(dataclasses.is_dataclass, parts)))

    made = settings("--lora")
    assert frozen(made)
    made = settings()
    assert made == settings("--chunk_tokens", "8192")
    assert made != settings("--chunk_tokens", "8191")
