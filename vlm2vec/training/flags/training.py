"""Flags for the steps: number, size, loss, optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlm2vec.choices import GROUPINGS
from vlm2vec.training.flags.checkpoint import NONE, CheckpointArguments, checkpoint_refusals
from vlm2vec.training.flags.cluster import ClusterArguments, cluster_refusals
from vlm2vec.training.flags.option import REQUIRED, Refusal, given, no_effect, option
from vlm2vec.training.flags.watch import LoggingArguments, WatchArguments, tracker_refusals, watch_refusals

DEFAULT_CHUNK_TOKENS = 8192
# Without a graph a chunk needs a fraction of the memory.
NO_GRAD_FACTOR = 4
AUTO = "auto"
# Values of `--temperature_by`, `--false_negative_source` and `--hard_negative_scope`; the first is the default.
TEMPERATURES = (NONE, *GROUPINGS)
MODEL, TEACHER = SOURCES = ("model", "teacher")
ALL_ROWS, OWN_ROW = SCOPES = ("all", "own")
# Two flags for one setting: on the command line, either replaces the other one of a recipe.
ALTERNATIVES = (("max_steps", "num_train_epochs"), ("warmup_steps", "warmup_ratio"))
# Both flags of the batch size are compared on a resume by the number of pairs.
_BATCH = "global batch"


@dataclass
class _RunFlags:
    """Run: where a run writes, and the engine that it runs on."""

    output_dir: str = option(
        REQUIRED, "Folder of the run: checkpoints, log and TensorBoard files.", "place", metavar="DIR"
    )
    deepspeed: str = option(
        REQUIRED,
        "DeepSpeed configuration: a JSON file, or zero2 for ds_configs/zero2.json.",
        "place",
        metavar="FILE",
        per_node=True,
    )


@dataclass
class _BatchFlags:
    """Batch and chunks: the length of a run, the pairs of a step, and how a step is cut to fit into memory."""

    max_steps: int = option(0, "Number of steps to train; 0: --num_train_epochs decides.")
    num_train_epochs: float | None = option(
        None,
        "Number of epochs to train, which may be a fraction; --max_steps then follows from the data. If not given: "
        "--max_steps decides.",
        compared_as="max_steps",
    )
    global_batch_size: int | None = option(
        None,
        "Pairs per step over all ranks. Required, unless --per_device_train_batch_size is given.",
        compared_as=_BATCH,
    )
    per_device_train_batch_size: int | None = option(
        None,
        "Pairs per step and rank, instead of --global_batch_size; the result then depends on the number of ranks.",
        compared_as=_BATCH,
    )
    grad_cache: bool = option(
        True, "Every step is cached, so this must stay true; a large --chunk_tokens runs a step as one chunk.", "speed"
    )
    chunk_tokens: int | None = option(
        None,
        f"Maximum number of tokens in a chunk, padding included. If not given: {DEFAULT_CHUNK_TOKENS}.",
        "speed",
        decides_chunks=True,
    )
    no_grad_chunk_tokens: int | None = option(
        None,
        "Maximum number of tokens in a chunk of the pass without a graph. If not given: "
        f"{NO_GRAD_FACTOR} times --chunk_tokens, with dropout the same as --chunk_tokens.",
        "speed",
        decides_chunks=True,
    )
    keep_graphs: str = option(
        AUTO,
        "Number of chunks whose pass-1 graph is kept, so that pass 2 need not run them again; 'auto': as many as fit "
        "into memory, 1 on a CPU.",
        "speed",
        metavar="auto|N",
        decides_chunks=True,
    )
    gc_q_chunk_size: int | None = option(
        None,
        "Queries per chunk, instead of a token limit; needs --gc_p_chunk_size. If not given: --chunk_tokens decides.",
        "speed",
        decides_chunks=True,
    )
    gc_p_chunk_size: int | None = option(
        None,
        "Targets per chunk, instead of a token limit; needs --gc_q_chunk_size. If not given: --chunk_tokens decides.",
        "speed",
        decides_chunks=True,
    )


@dataclass(kw_only=True)
class LossArguments:
    """Loss: temperature, hard negatives, false negatives, distillation."""

    temperature: float = option(0.02, "Temperature of the loss; the initial one with --learn_temperature.")
    learn_temperature: bool = option(False, "Train the temperature, starting at --temperature.")
    temperature_learning_rate: float = option(
        1e-3, "Peak learning rate of the logarithm of the temperature.", needs="learn_temperature"
    )
    temperature_by: str = option(
        NONE,
        "Learn a separate temperature for each subset, or for each meta-task of MMEB (a subset without a meta-task has "
        "one of its own).",
        metavar="|".join(TEMPERATURES),
        needs="learn_temperature",
    )
    bidirectional: bool = option(
        False, "Also compute the loss from targets to queries; the original code only goes from queries to targets."
    )
    matryoshka_dims: list[int] = option(
        [],
        "Also train the first N dimensions as embeddings, for each N given, such as 3072 1024 256. If not given: only "
        "the whole embedding.",
    )
    hard_negatives: bool = option(False, "Use the hard negatives of the data; the original code ignores them.")
    hard_negative_scope: str = option(
        ALL_ROWS,
        "Rows for which a hard negative is a negative: 'all' of the global batch, or its 'own' only.",
        metavar="|".join(SCOPES),
    )
    hardness_weight: float = option(
        0.0,
        "ALPHA: weight each negative by exp(ALPHA x its cosine with the query), without gradient through the weight; "
        "LLaVE uses 9. 0: no weights.",
    )
    mask_false_negatives: bool = option(False, "Leave out negatives that are identical to the target of the row.")
    false_negative_similarity: float | None = option(
        None,
        "S: leave out negatives whose cosine with the target of the row is above S, such as 0.95. If not given: no "
        "such limit.",
    )
    false_negative_margin: float | None = option(
        None,
        "M: leave out negatives whose cosine with the query is above the target's minus M; -0.1 leaves out those that "
        "exceed the target by more than 0.1. If not given: no such limit.",
    )
    false_negative_source: str = option(
        MODEL,
        "What finds false negatives: the 'model' in training, by the two flags above, or the 'teacher' of --mined.",
        metavar="|".join(SOURCES),
    )
    distill_weight: float = option(
        0.0,
        "W: add W times the divergence from the teacher's scores of the target and the mined negatives. 0: no "
        "distillation.",
    )
    distill_temperature: float = option(0.02, "Temperature of the teacher's scores.", needs="distill_weight")
    loss_block_rows: int | None = option(
        None,
        "Rows of the similarity matrix in memory at a time. If not given: as many as hold a million scores.",
        "speed",
    )


@dataclass(kw_only=True)
class OptimizerArguments:
    """Optimizer and schedule: AdamW, the learning rate over the steps, gradient clipping."""

    learning_rate: float = option(2e-5, "Peak learning rate of AdamW.")
    lr_scheduler_type: str = option(
        "linear", "Schedule of the learning rate after the warm-up, by its name in transformers.", metavar="NAME"
    )
    warmup_steps: int = option(0, "Steps over which the learning rate rises from 0.")
    warmup_ratio: float | None = option(
        None,
        "Fraction of all steps that is warm-up, instead of --warmup_steps. If not given: --warmup_steps decides.",
        compared_as="warmup_steps",
    )
    weight_decay: float = option(0.0, "Weight decay of AdamW.")
    adam_beta1: float = option(0.9, "Decay of AdamW's first moment.")
    adam_beta2: float = option(0.999, "Decay of AdamW's second moment.")
    adam_epsilon: float = option(1e-8, "Epsilon of AdamW.")
    max_grad_norm: float = option(1.0, "Clip the norm of the gradient to this value; 0: no clipping.")


@dataclass(kw_only=True)
class _SeedFlags:
    """Reproducibility: what decides random choices, and whether kernels repeat their bits."""

    seed: int = option(42, "Seed of the data order, the initial adapter and dropout.")
    deterministic: bool = option(
        False,
        "Use only kernels that give the same bits in every run: a resume on GPUs then matches bit for bit.",
        "speed",
    )


# Fields come in the order of the bases from right to left.
@dataclass
class TrainingArguments(
    LoggingArguments,
    _SeedFlags,
    OptimizerArguments,
    LossArguments,
    _BatchFlags,
    _RunFlags,
    CheckpointArguments,
    ClusterArguments,
    WatchArguments,
):
    """Flags for the steps."""


def training_refusals(training: TrainingArguments) -> Iterator[Refusal]:
    """Values that cannot work or would be ignored."""
    yield (
        not training.grad_cache,
        "--grad_cache False: every step is cached; for a step of one chunk, give a large --chunk_tokens",
    )
    yield (
        (training.global_batch_size is None) == (training.per_device_train_batch_size is None),
        "give either --global_batch_size or --per_device_train_batch_size",
    )
    yield from _length_refusals(training)
    yield training.logging_steps < 1, f"--logging_steps {training.logging_steps}: must be at least 1"
    yield from _chunk_refusals(training)
    yield from _loss_refusals(training)
    yield from checkpoint_refusals(training)
    yield from cluster_refusals(training)
    yield from tracker_refusals(training)
    if training.max_steps:
        yield from step_refusals(training)


def step_refusals(training: TrainingArguments) -> list[Refusal]:
    """Values that do not fit the number of steps, once it is known."""
    return [
        *watch_refusals(training, training.max_steps),
        (
            training.warmup_steps > training.max_steps,
            f"--warmup_steps {training.warmup_steps} is more than --max_steps {training.max_steps}",
        ),
    ]


def _length_refusals(training: TrainingArguments) -> list[Refusal]:
    """Flags for the length of a run, which exclude each other in pairs; 0 steps mean that the flag is not given."""
    max_steps, num_train_epochs = training.max_steps, training.num_train_epochs
    warmup_steps, warmup_ratio = training.warmup_steps, training.warmup_ratio
    return [
        (
            max_steps != 0 and num_train_epochs is not None,
            f"--max_steps {max_steps} and --num_train_epochs {num_train_epochs} exclude each other: give one",
        ),
        (
            max_steps < (num_train_epochs is None),
            f"--max_steps {max_steps}: must be at least 1; or give --num_train_epochs",
        ),
        (
            num_train_epochs is not None and not 0 < num_train_epochs < float("inf"),
            f"--num_train_epochs {num_train_epochs}: must be positive",
        ),
        (warmup_steps < 0, f"--warmup_steps {warmup_steps}: must be at least 0"),
        (
            warmup_steps != 0 and warmup_ratio is not None,
            f"--warmup_steps {warmup_steps} and --warmup_ratio {warmup_ratio} exclude each other: give one",
        ),
        (
            warmup_ratio is not None and not 0 <= warmup_ratio <= 1,
            f"--warmup_ratio {warmup_ratio}: must be from 0 to 1",
        ),
    ]


def _loss_refusals(training: TrainingArguments) -> list[Refusal]:
    weight, similarity, margin = (
        training.hardness_weight,
        training.false_negative_similarity,
        training.false_negative_margin,
    )
    return [
        (training.temperature <= 0, f"--temperature {training.temperature}: must be positive"),
        _one_of(training, "temperature_by", TEMPERATURES),
        _one_of(training, "hard_negative_scope", SCOPES),
        _one_of(training, "false_negative_source", SOURCES),
        (not 0 <= weight < math.inf, f"--hardness_weight {weight}: must be at least 0 and finite"),
        (
            similarity is not None and not -1 < similarity < 1,
            f"--false_negative_similarity {similarity}: must be between -1 and 1, as it is a cosine",
        ),
        (
            margin is not None and not -2 < margin < 2,
            f"--false_negative_margin {margin}: must be between -2 and 2, as it is a difference of cosines",
        ),
        no_effect(
            given(training, ["false_negative_similarity", "false_negative_margin"]),
            f"with --false_negative_source {TEACHER}, whose margin was chosen when its negatives were mined",
            when=training.false_negative_source == TEACHER,
        ),
        (
            not 0 <= training.distill_weight < math.inf,
            f"--distill_weight {training.distill_weight}: must be at least 0 and finite",
        ),
        (
            not 0 < training.distill_temperature < math.inf,
            f"--distill_temperature {training.distill_temperature}: must be positive and finite",
        ),
    ]


def _one_of(training: TrainingArguments, name: str, values: Sequence[str]) -> Refusal:
    value = getattr(training, name)
    return value not in values, f"--{name} {value}: must be one of {', '.join(values)}"


def _chunk_refusals(training: TrainingArguments) -> list[Refusal]:
    tokens, no_grad_tokens = training.chunk_tokens, training.no_grad_chunk_tokens
    fixed = (training.gc_q_chunk_size, training.gc_p_chunk_size)
    has_fixed = fixed != (None, None)
    return [
        ((fixed[0] is None) != (fixed[1] is None), "give both --gc_q_chunk_size and --gc_p_chunk_size, or neither"),
        (any(size is not None and size < 1 for size in fixed), f"chunk sizes must be at least 1, not {fixed}"),
        (tokens is not None and tokens < 1, f"--chunk_tokens {tokens}: must be at least 1"),
        (
            training.keep_graphs != AUTO and not training.keep_graphs.isdecimal(),
            f"--keep_graphs {training.keep_graphs}: must be '{AUTO}' or a number",
        ),
        (
            no_grad_tokens is not None and has_fixed,
            "--no_grad_chunk_tokens: no effect with --gc_q_chunk_size, which fixes the chunks of both passes",
        ),
        (
            no_grad_tokens is not None and no_grad_tokens < (tokens or DEFAULT_CHUNK_TOKENS),
            f"--no_grad_chunk_tokens {no_grad_tokens}: must be at least --chunk_tokens",
        ),
        (
            tokens is not None and has_fixed,
            "--chunk_tokens and --gc_q_chunk_size/--gc_p_chunk_size exclude each other: give one kind",
        ),
    ]
