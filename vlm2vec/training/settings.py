"""Resolved settings of a run in typed groups: everything that is `auto` or absent in the flags has a value here.

`RunArguments.resolve` (flags/run.py) makes them from the flags. A part of a run takes its own group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.batches import ChunkSizes, Mixture
from vlm2vec.choices import LoraSettings
from vlm2vec.contrastive import Distillation, Negatives
from vlm2vec.contrastive.loss import BLOCK_SCORES
from vlm2vec.errors import InputError
from vlm2vec.inputs.packing import FixedCounts, TokenBudget
from vlm2vec.training.flags.training import NO_GRAD_FACTOR


@dataclass(frozen=True)
class Precision:
    """The dtypes of a run.

    Attributes:
        weights: Dtype of trained weights, as the engine holds them between calls.
        frozen: Dtype of frozen weights.
        compute: Dtype of matrix products and of images' pixels.
        autocast: Whether matrix products cast `weights` to `compute`; otherwise weights are in the compute dtype.
        gradients: Dtype of gradients as they are summed over chunks and ranks, and of master weights and moments.
    """

    weights: torch.dtype
    frozen: torch.dtype
    compute: torch.dtype
    autocast: bool
    gradients: torch.dtype = torch.float32

    @classmethod
    def of(cls, bf16: bool, lora: bool) -> Precision:
        """Follows from `--bf16` and `--lora`: an adapter is small and stays in float32 on a bfloat16 base."""
        compute = torch.bfloat16 if bf16 else torch.float32
        return cls(weights=torch.float32 if lora else compute, frozen=compute, compute=compute, autocast=bf16 and lora)

    @property
    def engine_casts(self) -> bool:
        """Whether DeepSpeed's bfloat16 engine runs: bfloat16 weights with separate master weights."""
        return self.weights is torch.bfloat16


@dataclass(frozen=True)
class EncoderSettings:
    """The encoder: which model, how it computes, and which of its parts are trained.

    Attributes:
        max_len: Longest text-only item in tokens; None: the model folder's setting.
        image_limits: Limits on image sizes by name; absent ones are the model folder's.
        prompt_format: A prompt format, or the name of one of the family's; None: the model folder's setting.
        attn_implementation: Attention implementation; None: the best installed one.
        deterministic: Use only kernels that give the same bits in every run.
        lora: Settings of the adapter; None: all weights are trained.
    """

    model_name: str
    max_len: int | None
    image_limits: Mapping[str, int]
    prompt_format: str | PromptFormat | None
    normalize: bool
    attn_implementation: str | None
    gradient_checkpointing: bool
    compile_layers: bool
    deterministic: bool
    freeze_vision_tower: bool
    freeze_projector: bool
    precision: Precision
    lora: LoraSettings | None


@dataclass(frozen=True)
class Chunking:
    """How items become chunks.

    Attributes:
        packing: A token budget, or fixed numbers of items.
        no_grad_tokens: Token budget of pass 1, which has no graph; None: `NO_GRAD_FACTOR` times the budget of pass 2,
            or with dropout the chunks of pass 2.
        keep_graphs: Number of chunks whose graph is kept from pass 1 to pass 2; None: as many as fit, measured on the
            device.
    """

    packing: TokenBudget | FixedCounts
    no_grad_tokens: int | None
    keep_graphs: int | None

    def no_grad_budget(self, has_dropout: bool) -> int | None:
        """Token budget of pass 1, which has no graph; None: it runs the chunks of pass 2.

        Raises:
            InputError: A budget was given, but dropout needs the same chunks in both passes.
        """
        if isinstance(self.packing, FixedCounts):
            return None
        if not has_dropout:
            return self.no_grad_tokens or NO_GRAD_FACTOR * self.packing.chunk_tokens
        if self.no_grad_tokens is None:
            return None
        raise InputError(
            f"--no_grad_chunk_tokens {self.no_grad_tokens}: with dropout, pass 1 must run the chunks of pass 2, whose "
            "masks it shares; leave it out, or set --lora_dropout 0"
        )

    def measured(self, sizes: ChunkSizes) -> Chunking:
        """Fills in what could only be decided on the device."""
        return replace(self, no_grad_tokens=sizes.no_grad_tokens, keep_graphs=sizes.keep_graphs)


@dataclass(frozen=True)
class LossSettings:
    """The loss and its temperature.

    Attributes:
        temperature: Fixed temperature, or initial value of a learned one.
        temperature_learning_rate: Peak learning rate of the temperature's logarithm; None: it is fixed.
        block_rows: Rows of the similarity matrix in memory at a time; None: as many as hold `BLOCK_SCORES` scores.
        temperature_by: Groups of rows that learn one temperature each, SUBSET or META_TASK of `vlm2vec.batches.groups`;
            None: all rows share one.
        negatives: Weights and masks of negatives.
        distillation: Distillation from the scores of a sidecar; None without.
    """

    temperature: float
    temperature_learning_rate: float | None
    bidirectional: bool
    matryoshka_dims: tuple[int, ...]
    mask_false_negatives: bool
    block_rows: int | None
    temperature_by: str | None
    negatives: Negatives
    distillation: Distillation | None

    def rows_of_a_block(self, columns: int, rows: int) -> int:
        """Rows of a block of a rank's part of the similarity matrix.

        Args:
            columns: Columns of the matrix.
            rows: The rank's own rows; a block has no others.
        """
        return min(rows, self.block_rows or max(1, BLOCK_SCORES // columns))


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW; a `max_grad_norm` of 0 does not clip."""

    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    epsilon: float
    max_grad_norm: float


@dataclass(frozen=True)
class ScheduleSettings:
    """Length of a run, and its learning rate over the steps.

    Attributes:
        kind: Name of the schedule in transformers.
        max_steps: Total steps; 0 if the length is given in epochs and the data are not open yet.
        warmup_steps: Steps over which the learning rate rises from 0.
    """

    kind: str
    max_steps: int
    warmup_steps: int


@dataclass(frozen=True)
class MinedSettings:
    """What a run uses of a teacher's sidecar.

    Attributes:
        folder: Folder of the sidecar.
        negatives: Most mined hard negatives per row.
        clusters: Whether rows of a mined cluster stay together in a batch.
        false_negatives: Whether the teacher's false negatives are masked.
        scores: Whether the loss uses the teacher's scores.
    """

    folder: Path
    negatives: int = 0
    clusters: bool = False
    false_negatives: bool = False
    scores: bool = False


@dataclass(frozen=True)
class DataSettings:
    """The shards and the order of their samples.

    Attributes:
        dataset_name: Folder or URL of the shards.
        subsets: Names of subsets; None: all.
        mixture: How subsets are mixed.
        seed: Seed of the order.
        global_batch_size: Pairs per step over all ranks.
        hard_negatives: Whether the data's hard negatives are used.
        mined: What is used of a teacher's sidecar; None without one.
        max_bad_samples: Most unreadable samples before the run ends.
        num_workers: Loader processes per rank.
        cache_dir: Folder that caches pieces of shards behind a URL; None: a temporary one.
        cache_bytes: Size limit of the cache in bytes.
    """

    dataset_name: str
    subsets: tuple[str, ...] | None
    mixture: Mixture
    seed: int
    global_batch_size: int
    hard_negatives: bool
    mined: MinedSettings | None
    max_bad_samples: int
    num_workers: int
    cache_dir: Path | None
    cache_bytes: int

    def negatives_a_row(self, own: int = 1) -> int:
        """Hard negatives per row, for estimates: those in the data, if they are used, plus the mined ones.

        Args:
            own: Hard negatives that the data have per row.
        """
        return own * self.hard_negatives + (self.mined.negatives if self.mined else 0)


@dataclass(frozen=True)
class CheckpointSettings:
    """A run's folder, when checkpoints are written and kept, and where the run resumes.

    Attributes:
        output_dir: The run's folder.
        every: Steps between checkpoints; None: only at the end.
        limit: Number of checkpoints to keep; None: all.
        resume: AUTO of flags/checkpoint.py, or a checkpoint; None: start from the beginning.
        allow_changed: Flags that may differ from the checkpoint's.
        keeps_best: Whether the best checkpoint is kept in addition.
        excludes_frozen: Whether checkpoints leave out frozen weights.
    """

    output_dir: Path
    every: int | None
    limit: int | None
    resume: str | None
    allow_changed: tuple[str, ...]
    keeps_best: bool
    excludes_frozen: bool


@dataclass(frozen=True)
class WatchSettings:
    """Log lines, profiles and MFU.

    Attributes:
        logging_steps: Steps per log line.
        report_to: Trackers that receive the metrics, besides log.jsonl and the terminal.
        project: Name of the project in wandb and trackio.
        profile_steps: First and last step of a trace; empty without one.
        flops_profile_step: Step whose forward passes DeepSpeed's profiler counts.
        peak_tflops: Peak TFLOP/s per device; None: looked up by the device's name, without MFU if unknown.
    """

    logging_steps: int
    report_to: tuple[str, ...]
    project: str
    profile_steps: tuple[int, ...]
    flops_profile_step: int | None
    peak_tflops: float | None


@dataclass(frozen=True)
class EvaluationSettings:
    """Evaluation during training; `every` is the interval in steps."""

    every: int
    dataset_name: str
    image_dir: str
    allow_links: bool
    subsets: tuple[str, ...]
    saves_best: bool


@dataclass(frozen=True)
class ClusterSettings:
    """Number of ranks, and what is distributed over them.

    Attributes:
        num_ranks: Number of ranks.
        zero_stage: ZeRO stage, 1, 2 or 3: how DeepSpeed partitions weights, gradients and optimizer states.
        global_batch_size: Pairs per step over all ranks.
        step_timeout: Seconds without progress after which a run ends, once it has done a step.
        collective_timeout: The same limit before the first step, and the limit of every collective.
    """

    num_ranks: int
    zero_stage: int
    global_batch_size: int
    step_timeout: int
    collective_timeout: int


@dataclass(frozen=True)
class EngineSettings:
    """What DeepSpeed's engine is built from.

    Attributes:
        file: Content of the `--deepspeed` file, from `read_engine_file`.
        precision: Dtypes of weights and gradients.
        optimizer: Settings of AdamW.
        cluster: The ranks.
    """

    file: Mapping[str, Any]
    precision: Precision
    optimizer: OptimizerSettings
    cluster: ClusterSettings
