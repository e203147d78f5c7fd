"""What is in force in a run, in typed groups: everything that is `auto` or absent in the flags is decided here.

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
        weights: Of trained weights, as the engine holds them between calls.
        frozen: Of all other weights.
        compute: Of matrix products, and of images' pixels.
        autocast: Whether products round from `weights` to `compute`; otherwise weights have the compute dtype already.
        gradients: Of gradients as they are summed over chunks and ranks; master weights and moments have it too.
    """

    weights: torch.dtype
    frozen: torch.dtype
    compute: torch.dtype
    autocast: bool
    gradients: torch.dtype = torch.float32

    @classmethod
    def of(cls, bf16: bool, lora: bool) -> Precision:
        """By `--bf16` and `--lora`: an adapter stays in float32 on a bfloat16 base, as it is small."""
        compute = torch.bfloat16 if bf16 else torch.float32
        return cls(weights=torch.float32 if lora else compute, frozen=compute, compute=compute, autocast=bf16 and lora)

    @property
    def engine_casts(self) -> bool:
        """Whether DeepSpeed's bfloat16 engine runs: weights in bfloat16, master weights beside them."""
        return self.weights is torch.bfloat16


@dataclass(frozen=True)
class EncoderSettings:
    """The encoder: which model, how it computes, what of it is trained.

    Attributes:
        max_len: Longest text-only item in tokens; None: what the model's folder says.
        image_limits: Limits on image sizes, by name; for those that it lacks, what the model's folder says.
        prompt_format: A format, or its family's of this name; None: what the model's folder says.
        attn_implementation: None: the best installed.
        deterministic: Use only kernels that give the same bits in every run.
        lora: The adapter; None: all weights are trained.
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
        no_grad_tokens: The budget of the pass without a graph; None: `NO_GRAD_FACTOR` times the other, and with
            dropout the same chunks.
        keep_graphs: Chunks whose graph is kept from pass 1 to pass 2; None: as many as fit, measured on the device.
    """

    packing: TokenBudget | FixedCounts
    no_grad_tokens: int | None
    keep_graphs: int | None

    def no_grad_budget(self, has_dropout: bool) -> int | None:
        """Tokens of a chunk of the pass without a graph; None: it runs the chunks of the pass with one.

        Raises:
            InputError: A budget was asked for, and dropout needs the same chunks in both passes.
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
        """With what could only be decided on the device."""
        return replace(self, no_grad_tokens=sizes.no_grad_tokens, keep_graphs=sizes.keep_graphs)


@dataclass(frozen=True)
class LossSettings:
    """The loss and its temperature.

    Attributes:
        temperature: The fixed one, or where a learned one starts.
        temperature_learning_rate: Peak learning rate of its logarithm; None: it is fixed.
        block_rows: Rows of the similarity matrix in memory at a time; None: as many as hold `BLOCK_SCORES` scores.
        temperature_by: What has a learned temperature of its own, SUBSET or META_TASK of `vlm2vec.batches.groups`;
            None: all rows have one.
        negatives: How negatives take part.
        distillation: From the scores of a sidecar; None: none.
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

    def rows_of_a_block(self, columns: int) -> int:
        """Rows of a block of the similarity matrix with so many columns."""
        return self.block_rows or max(1, BLOCK_SCORES // columns)


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
    """How long a run is, and its learning rate over the steps.

    Attributes:
        kind: transformers' name.
        max_steps: All steps; 0 where epochs were asked for and the data are not known yet.
        warmup_steps: Steps over which the learning rate rises from 0.
    """

    kind: str
    max_steps: int
    warmup_steps: int


@dataclass(frozen=True)
class MinedSettings:
    """What of a teacher's sidecar takes part.

    Attributes:
        folder: The sidecar.
        negatives: Mined hard negatives of a row, at most.
        clusters: Whether rows of a mined cluster stay together.
        false_negatives: Whether the teacher's false negatives are left out of a row's negatives.
        scores: Whether the teacher's scores go to the loss.
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
        dataset_name: Their folder or URL.
        subsets: None: all.
        mixture: How subsets mix.
        seed: Of the order.
        global_batch_size: Pairs a step over all ranks.
        hard_negatives: Whether they take part.
        mined: What a teacher mined; None: nothing.
        max_bad_samples: More unreadable samples end the run.
        num_workers: Processes a rank that decode ahead.
        cache_dir: Of pieces of shards behind a URL; None: a temporary one.
        cache_bytes: Its size limit.
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

    @property
    def negatives_a_row(self) -> int:
        """Hard negatives of a row for estimates: one of the data's own, where they take part, and the mined ones."""
        return int(self.hard_negatives) + (self.mined.negatives if self.mined else 0)


@dataclass(frozen=True)
class CheckpointSettings:
    """Where a run's files go, when checkpoints are written, and where it resumes.

    Attributes:
        output_dir: The run's folder.
        every: Steps from one checkpoint to the next; None: only at the end.
        limit: How many are kept; None: all.
        resume: AUTO of flags/checkpoint.py, a checkpoint, or None: from the start.
        allow_changed: Flags that may differ from the checkpoint's.
        keeps_best: Whether the best one is kept besides.
        excludes_frozen: Whether weights that are not trained are left out.
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
    """Log lines, profiles, and what MFU is counted by.

    Attributes:
        logging_steps: Steps from one line to the next.
        report_to: Trackers that get the metrics, beside log.jsonl and the terminal.
        project: What wandb and trackio file the run under.
        profile_steps: First and last step of a trace, or nothing.
        flops_profile_step: The step whose forward passes DeepSpeed's profiler counts.
        peak_tflops: A device's TFLOP/s; None: known by the device's name, or no MFU.
    """

    logging_steps: int
    report_to: tuple[str, ...]
    project: str
    profile_steps: tuple[int, ...]
    flops_profile_step: int | None
    peak_tflops: float | None


@dataclass(frozen=True)
class EvaluationSettings:
    """Scores during training, every so many steps."""

    every: int
    dataset_name: str
    image_dir: str
    allow_links: bool
    subsets: tuple[str, ...]
    saves_best: bool


@dataclass(frozen=True)
class ClusterSettings:
    """The ranks.

    Attributes:
        num_ranks: How many.
        zero_stage: How DeepSpeed partitions weights, gradients and states: 1, 2 or 3.
        global_batch_size: Pairs a step over all ranks.
        step_timeout: Seconds without progress after which a run ends that has done a step.
        collective_timeout: The same before; the limit of any collective.
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
        file: The content of the `--deepspeed` file, as `read_engine_file` returns it.
        precision: Of weights and gradients.
        optimizer: AdamW.
        cluster: The ranks.
    """

    file: Mapping[str, Any]
    precision: Precision
    optimizer: OptimizerSettings
    cluster: ClusterSettings
