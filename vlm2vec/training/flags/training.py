"""Flags for the steps: how many, how large, the loss, the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlm2vec.batches.groups import GROUPINGS
from vlm2vec.training.flags.checkpoint import NONE, CheckpointArguments, checkpoint_refusals
from vlm2vec.training.flags.cluster import ClusterArguments, cluster_refusals
from vlm2vec.training.flags.option import REQUIRED, Refusal, given, no_effect, option
from vlm2vec.training.flags.watch import WatchArguments, watch_refusals
from vlm2vec.training.settings import NO_GRAD_FACTOR

DEFAULT_CHUNK_TOKENS = 8192
AUTO = "auto"
# Of `--temperature_by`, `--false_negative_source` and `--hard_negative_scope`; the first of each is its default.
TEMPERATURES = (NONE, *GROUPINGS)
MODEL, TEACHER = SOURCES = ("model", "teacher")
ALL_ROWS, OWN_ROW = SCOPES = ("all", "own")
# Two ways to say one thing; on the command line either replaces the other one of a recipe.
ALTERNATIVES = (("max_steps", "num_train_epochs"), ("warmup_steps", "warmup_ratio"))
# Both name the batch; a resume compares the number of pairs.
_BATCH = "global batch"


@dataclass
class TrainingArguments(CheckpointArguments, ClusterArguments, WatchArguments):
    """The run."""

    output_dir: str = option(REQUIRED, "Folder of the run: checkpoints, log, TensorBoard.", "place")
    deepspeed: str = option(
        REQUIRED, "DeepSpeed configuration: a JSON file, or zero2 for ds_configs/zero2.json.", "place", per_node=True
    )
    max_steps: int = option(0, "Steps to train. Or give --num_train_epochs.")
    num_train_epochs: float | None = option(
        None, "Epochs to train, whole or not; --max_steps follows from the data.", compared_as="max_steps"
    )
    global_batch_size: int | None = option(None, "Pairs a step over all ranks.", compared_as=_BATCH)
    per_device_train_batch_size: int | None = option(
        None,
        "Pairs a step and rank; the global batch then depends on the cluster. Or give --global_batch_size.",
        compared_as=_BATCH,
    )
    grad_cache: bool = option(True, "Cached step; False is refused: a large --chunk_tokens runs one chunk.", "speed")
    chunk_tokens: int | None = option(
        None,
        f"Token budget of a chunk, padding counted; {DEFAULT_CHUNK_TOKENS} if not given.",
        "speed",
        decides_chunks=True,
    )
    no_grad_chunk_tokens: int | None = option(
        None,
        f"Token budget of the pass without a graph; {NO_GRAD_FACTOR} times the other, with dropout equal to it.",
        "speed",
        decides_chunks=True,
    )
    keep_graphs: str = option(
        AUTO,
        "Number of chunks whose pass-1 graph is kept, so that pass 2 need not run them again; auto = as many as fit, 1 "
        "on a CPU.",
        "speed",
        decides_chunks=True,
    )
    gc_q_chunk_size: int | None = option(
        None, "Queries a chunk, instead of a token budget.", "speed", decides_chunks=True
    )
    gc_p_chunk_size: int | None = option(
        None, "Targets a chunk, instead of a token budget.", "speed", decides_chunks=True
    )
    temperature: float = option(0.02, "Temperature of the loss.")
    learn_temperature: bool = option(False, "Train the temperature, starting at --temperature.")
    temperature_learning_rate: float = option(
        1e-3, "Peak learning rate of the temperature's logarithm.", needs="learn_temperature"
    )
    temperature_by: str = option(
        NONE,
        "Learn a temperature for each 'subset' or 'meta_task' of MMEB instead of one; a subset without meta-task has "
        "its own.",
        needs="learn_temperature",
    )
    bidirectional: bool = option(False, "Also from targets to queries; the original goes from queries to targets.")
    matryoshka_dims: list[int] = option(
        [], "Leading dimensions to train as embeddings of their own, such as 3072 1024 256."
    )
    hard_negatives: bool = option(False, "Let the data's hard negatives take part; the original never uses them.")
    hard_negative_scope: str = option(
        ALL_ROWS, "Rows in which a hard negative competes: 'all' of the global batch, or its 'own' only."
    )
    hardness_weight: float = option(
        0.0, "ALPHA: weight each negative by exp(ALPHA x its cosine with the query), detached; LLaVE: 9. 0: off."
    )
    mask_false_negatives: bool = option(False, "Leave out negatives that are the same item as the row's target.")
    false_negative_similarity: float | None = option(
        None, "S: leave out negatives whose cosine with the row's target is above S, such as 0.95."
    )
    false_negative_margin: float | None = option(
        None,
        "M: leave out negatives whose cosine with the query is above the target's minus M; -0.1 leaves out those that "
        "surpass the target by 0.1.",
    )
    false_negative_source: str = option(
        MODEL, "Who finds them: the 'model' being trained, by the two flags above, or the 'teacher' of --mined."
    )
    distill_weight: float = option(
        0.0,
        "W: add W times the divergence from the teacher's scores of target and mined negatives. 0: off.",
    )
    distill_temperature: float = option(0.02, "Temperature of the teacher's scores.", needs="distill_weight")
    loss_block_rows: int | None = option(
        None,
        "Rows of the similarity matrix in memory at a time; if not given, as many as hold a million scores.",
        "speed",
    )
    learning_rate: float = option(2e-5, "Peak learning rate of AdamW.")
    lr_scheduler_type: str = option("linear", "Schedule after the warm-up, by transformers' names.")
    warmup_steps: int = option(0, "Steps over which the learning rate rises from 0.")
    warmup_ratio: float | None = option(
        None, "Share of all steps that is warm-up, instead of --warmup_steps.", compared_as="warmup_steps"
    )
    weight_decay: float = option(0.0, "Weight decay of AdamW.")
    adam_beta1: float = option(0.9, "First moment's decay.")
    adam_beta2: float = option(0.999, "Second moment's decay.")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon.")
    max_grad_norm: float = option(1.0, "Clip the gradient's norm to this; 0 does not clip.")
    seed: int = option(42, "Seed of the order, the initial adapter and dropout.")
    deterministic: bool = option(
        False,
        "Use only kernels that give the same bits in every run: a resume on GPUs is then equal bit for bit.",
        "speed",
    )
    logging_steps: int = option(10, "Write a line every N steps.", "speed")


def training_refusals(training: TrainingArguments) -> Iterator[Refusal]:
    """What cannot work or would be ignored."""
    yield (
        not training.grad_cache,
        "--grad_cache False: every step is cached; a large --chunk_tokens runs one chunk",
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
    if training.max_steps:
        yield from step_refusals(training)


def step_refusals(training: TrainingArguments) -> list[Refusal]:
    """What does not fit the number of steps, once it is known."""
    return [
        *watch_refusals(training, training.max_steps),
        (
            training.warmup_steps > training.max_steps,
            f"--warmup_steps {training.warmup_steps} is more than --max_steps {training.max_steps}",
        ),
    ]


def _length_refusals(training: TrainingArguments) -> list[Refusal]:
    """The flags that say how long a run is exclude each other in pairs; 0 steps stand for none given."""
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
