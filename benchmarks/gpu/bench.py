"""One model on the device, and the steps that are measured with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache, partial
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.dora import peft_dora
from benchmarks.gpu.model import (
    TINY_SHARE,
    Batch,
    Model,
    build_encoder,
    make_batch,
    run_settings,
)
from benchmarks.gpu.rows import Figures, LeftOutError, release_memory
from benchmarks.operators import OperatorCosts
from vlm2vec.batches import ChunkSizes
from vlm2vec.compiling import compile_layers
from vlm2vec.contrastive import CachedStep, Chunk, ContrastiveLoss, has_dropout
from vlm2vec.contrastive.watch import Part
from vlm2vec.dora import kept_norms
from vlm2vec.encoder import VLM2Vec
from vlm2vec.inputs.packing import TokenBudget
from vlm2vec.plan.assumptions import Hardware, Workload
from vlm2vec.plan.estimate import RunPlan
from vlm2vec.plan.meta import MetaModel
from vlm2vec.plan.model_flops import counted_flops
from vlm2vec.plan.states import ZeroSettings
from vlm2vec.training.engine import build_engine, schedule
from vlm2vec.training.flags.run import RunSettings
from vlm2vec.training.watch.clock import StepClock
from vlm2vec.training.watch.mfu import ModelFlops, known_peak_tflops
from vlm2vec.training.watch.parts import RunPart

GIB = 2**30
_TERA = 1e12
_TEXT_TOKENS = 40


class Work(Enum):
    """The kind of step that a row runs."""

    STEP = "whole steps"
    COMPUTE = "forward and backward alone, gradients dropped as they come: for what does not fit with its optimizer"
    ENCODE = "forward alone, in evaluation mode: what scoring and `encode` run"


@dataclass(frozen=True)
class Variant:
    """One row.

    Attributes:
        what: Its name.
        model: Flags of vlm2vec.train that decide the model.
        chunk_tokens: Token budget of a chunk.
        keep_graphs: Maximum number of kept graphs.
        is_peft: Whether to use PEFT's DoRA layers.
        is_compiled: Whether to compile elementwise operators.
        cudnn_attention: Whether torch may choose cuDNN's attention.
        work: The kind of step.
        engine: The DeepSpeed configuration, a file in ds_configs without its suffix.
    """

    what: str
    model: str
    chunk_tokens: int = 8192
    keep_graphs: int = 1
    is_peft: bool = False
    is_compiled: bool = False
    cudnn_attention: bool = False
    work: Work = Work.STEP
    engine: str = "zero2"

    @property
    def kind(self) -> tuple[Any, ...]:
        """A key that is equal for variants that can use the same model."""
        return self.model, self.is_peft, self.is_compiled, self.work, self.engine


@dataclass(frozen=True)
class Setting:
    """The settings that all rows share. `peak_tflops` None: the value known for the device, if any."""

    device: torch.device
    model: Model
    pairs: int
    steps: int
    peak_tflops: float | None


class Bench:
    """One model on the device, and the engine that runs its steps."""

    def __init__(self, variant: Variant, setting: Setting) -> None:
        self.kind = variant.kind
        self._setting = setting
        self._is_compiled = False
        settings = settings_of(variant, setting)
        if variant.work is Work.STEP and setting.device.type == "cuda":
            _refuse_what_cannot_fit(planned_bytes(_meta(variant.model, setting), settings, keep_graphs=0))
        with peft_dora() if variant.is_peft else nullcontext():
            self._encoder = build_encoder(setting.model, settings.encoder, setting.device)
        self._engine: Any = None
        if variant.work is Work.STEP:
            self._engine = build_engine(self._encoder, settings.engine, partial(schedule, settings.schedule))
        elif variant.work is Work.ENCODE:
            self._encoder.eval()
        else:
            for parameter in self._encoder.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_drop_gradient)

    def close(self) -> None:
        """Frees the model."""
        if self._engine is not None:
            with suppress(Exception):  # a failed step may have left it in any state
                self._engine.destroy()
        self._engine = self._encoder = None  # type: ignore[assignment]
        release_memory()

    def measure(self, variant: Variant, around: Callable[[Callable[[], None]], object] | None = None) -> Figures:
        """Measures one row; `around` runs one more step, before the timed ones."""
        setting = self._setting
        settings = settings_of(variant, setting)
        chunking = settings.chunking
        keep_graphs = variant.keep_graphs if variant.work is Work.STEP else 0
        no_grad_tokens = (
            chunking.no_grad_budget(has_dropout(self._encoder)) if variant.work is not Work.ENCODE else None
        )
        sizes = ChunkSizes(chunking.packing, no_grad_tokens, keep_graphs)
        batch = make_batch(setting.model, setting.pairs, sizes, setting.device)
        step: _Step | _Compute = (
            _Step(self._engine, batch, setting)
            if variant.work is Work.STEP
            else _Compute(self._encoder, batch, setting.device, with_backward=variant.work is Work.COMPUTE)
        )
        # A tiny model's operators are not compiled, because compiling takes minutes on a CPU.
        stance = torch.compiler.set_stance("force_eager" if setting.model.tiny else "default")
        with _cudnn_attention(variant.cudnn_attention), stance:
            # Chooses kernels, creates the optimizer's state, and counts FLOPs, which compiled operators would hide.
            with torch.compiler.set_stance("force_eager"), OperatorCosts() as costs:
                step.run()
            if variant.is_compiled:
                if not self._is_compiled:
                    compile_layers(self._encoder)
                    self._is_compiled = True
                step.run()
            if around is not None:
                around(step.run)
            if setting.device.type == "cuda":  # memory stays allocated, as from step to step in a run
                torch.cuda.reset_peak_memory_stats()
            step.clock.read()
            num_graphs = counters["stats"]["unique_graphs"]
            for _ in range(setting.steps):
                step.run()
            parts = step.clock.read()
            num_graphs = counters["stats"]["unique_graphs"] - num_graphs
        seconds = sum(parts.values()) / setting.steps
        lengths = batch.lengths
        kept = batch.chunks.keep.num_chunks
        planned = None
        if variant.work is Work.STEP and setting.device.type == "cuda":
            planned = (
                _planned_for(
                    batch, _meta(variant.model, setting), settings, setting.model.processor.tokens_per_vision_unit
                )
                / GIB
            )
        return {
            "seconds": seconds,
            "pairs_per_second": batch.num_pairs / seconds,
            "items_per_second": len(lengths) / seconds,
            "tokens_per_second": sum(lengths) / seconds,
            "mfu": None if variant.work is Work.ENCODE else _utilization(variant.model, batch, seconds, setting),
            "run_tflops": costs.flops / seconds / _TERA,
            "peak_gib": torch.cuda.max_memory_allocated() / GIB if setting.device.type == "cuda" else None,
            "plan_gib": planned,
            "loss": None if step.loss is None else float(step.loss),
            "compiled_in_timed_steps": num_graphs,
            "num_chunks": kept + batch.chunks.repeat.num_chunks,
            **{part.value: parts.get(part, 0.0) / setting.steps / seconds for part in (Part.PASS_1, Part.PASS_2)},
        }


class _Step:
    """A whole step, as in a run's loop."""

    def __init__(self, engine: Any, batch: Batch, setting: Setting) -> None:
        self.clock = StepClock(setting.device)
        self.loss: torch.Tensor | None = None
        self._engine, self._batch = engine, batch
        padding = setting.model.inputs().chunk([setting.model.processor.blank_item(1)])
        self._step = CachedStep(engine, ContrastiveLoss(0.02), padding, watch=self.clock)

    def run(self) -> None:
        """Runs one step."""
        with kept_norms(self._engine):
            self.loss = self._step.cache_step(self._batch.chunks, self._batch.layout).loss
        with self.clock.part(RunPart.OPTIMIZER):
            self._engine.step()


class _Compute:
    """Both passes over the chunks without engine, loss and optimizer, or the first pass only."""

    loss = None

    def __init__(self, encoder: VLM2Vec, batch: Batch, device: torch.device, with_backward: bool) -> None:
        self.clock = StepClock(device)
        self._encoder, self._batch, self._device, self._with_backward = encoder, batch, device, with_backward

    def run(self) -> None:
        """Runs one step's chunks."""
        chunks = self._batch.chunks
        with kept_norms(self._encoder):
            with self.clock.part(Part.PASS_1), torch.no_grad():
                for chunk in chunks.encode.chunks:
                    self._encoder(**chunk.arguments(self._device, False))
            if not self._with_backward:
                return
            with self.clock.part(Part.PASS_2):
                for chunk in chunks.repeat.chunks:
                    self._encoder(**chunk.arguments(self._device, False)).sum().backward()


def settings_of(variant: Variant, setting: Setting) -> RunSettings:
    """The settings of a run for a variant."""
    flags = f"{variant.model} --chunk_tokens {variant.chunk_tokens} --keep_graphs {variant.keep_graphs}"
    return run_settings(flags, setting.pairs, setting.model.tiny, variant.engine)


def planned_bytes(model: MetaModel, settings: RunSettings, keep_graphs: int) -> float:
    """The planned memory of one rank on one GPU, with this many kept graphs."""
    zero = ZeroSettings.read(settings.engine.file["zero_optimization"])
    settings = replace(settings, chunking=replace(settings.chunking, keep_graphs=keep_graphs))
    one_gpu = Hardware(1, 1, 80 * GIB, 1.0, 1.0, 1.0, 1.0)
    plan = RunPlan(model, settings, zero, one_gpu, Workload(1.0, _TEXT_TOKENS))
    return plan.memory(zero).peak


def _planned_for(batch: Batch, model: MetaModel, settings: RunSettings, tokens_per_vision_unit: float) -> float:
    """The planned memory of chunks as full as these, because a few pairs do not fill a large budget."""

    def filled(chunk: Chunk) -> int:
        vision_units = len(chunk.inputs.get("pixel_values", ()))
        return int(chunk.inputs["input_ids"].numel()) + math.ceil(tokens_per_vision_unit * vision_units)

    kept, repeated = ([filled(chunk) for chunk in phase.chunks] for phase in (batch.chunks.keep, batch.chunks.repeat))
    largest = max(kept + repeated)
    chunking = replace(settings.chunking, packing=TokenBudget(largest), no_grad_tokens=None)
    return planned_bytes(model, replace(settings, chunking=chunking), round(sum(kept) / largest))


def _refuse_what_cannot_fit(planned: float) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    if planned > total:
        raise LeftOutError(f"does not fit: {planned / GIB:.0f} GiB planned, {total / GIB:.0f} GiB there")


@contextmanager
def _cudnn_attention(is_allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(is_allowed)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


@cache
def _meta(model_flags: str, setting: Setting) -> MetaModel:
    """The model on the meta device; variants that differ only in their chunks share it and its measurements."""
    model = setting.model
    settings = run_settings(f"{model_flags} --chunk_tokens {TINY_SHARE}", setting.pairs, model.tiny)
    return MetaModel(model.config, settings.encoder, model.processor)


def _utilization(model_flags: str, batch: Batch, seconds: float, setting: Setting) -> float | None:
    """MFU; None if the peak is not known."""
    peak = setting.peak_tflops or known_peak_tflops(setting.device)
    if peak is None:
        return None
    squared, squared_units = (sum(each**2 for each in numbers) for numbers in (batch.lengths, batch.vision_units))
    # Without dropout, because its kind and rate make no difference here.
    useful = _useful_flops(model_flags.partition(" --lora_dropout")[0], setting).of(
        sum(batch.lengths), squared, sum(batch.vision_units), squared_units
    )
    return useful / (seconds * peak * _TERA)


@cache
def _useful_flops(model_flags: str, setting: Setting) -> ModelFlops:
    """The model's own FLOPs. Takes a few seconds."""
    return counted_flops(_meta(model_flags, setting), _TERA)
