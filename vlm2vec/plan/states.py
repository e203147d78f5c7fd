"""Memory that DeepSpeed 0.19.8 holds on a rank besides activations: weights, gradients, optimizer, buffers.

Compared with the tensors that live engines hold in tests/distributed/test_estimate.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# AdamW's two moments and the master weights, float32 each.
_OPTIMIZER_BYTES = 12
_FLOAT32 = 4
_BFLOAT16 = 2


@dataclass(frozen=True)
class ModelSize:
    """Parameter counts of a model.

    Attributes:
        total: All parameters.
        trainable: Trained parameters.
        language: Parameters that every item uses.
        vision: Parameters that only images use; those in neither group never run.
        largest: Elements of the largest trained parameter.
        trainable_bytes: Bytes per trained weight in the engine: 2 (bfloat16, with separate master weights) or 4.
        frozen_bytes: Bytes per frozen weight.
    """

    total: int
    trainable: int
    language: int
    vision: int
    largest: int
    trainable_bytes: int
    frozen_bytes: int

    @property
    def in_float32(self) -> bool:
        """Whether trained weights are float32: then chunks' gradients add up in float32, reduced once per step."""
        return self.trainable_bytes == _FLOAT32

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.trainable * self.trainable_bytes + (self.total - self.trainable) * self.frozen_bytes


@dataclass(frozen=True)
class ZeroSettings:
    """The part of a DeepSpeed configuration that decides memory and traffic; sizes are in elements.

    Attributes:
        stage: 1, 2 or 3.
        offload_optimizer: Whether master weights, moments and reduced gradients are in host memory.
        offload_param: Whether weights are in host memory (stage 3).
        reduce_bucket: Gradients reduced at a time.
        num_buckets: Number of buckets that exist at a time.
        max_live: Most parameters that stay gathered (stage 3).
        prefetch: Parameters gathered ahead (stage 3).
        sub_group: Parameters updated at a time (stage 3).
    """

    stage: int
    offload_optimizer: bool
    offload_param: bool
    reduce_bucket: int
    num_buckets: int
    max_live: int
    prefetch: int
    sub_group: int

    @classmethod
    def read(cls, zero_optimization: Mapping[str, Any]) -> ZeroSettings:
        """Reads the configuration's section; absent keys have DeepSpeed's defaults."""
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        zero = DeepSpeedZeroConfig(**zero_optimization)

        def offloads(settings: Any) -> bool:
            return settings is not None and settings.device != "none"

        return cls(
            stage=int(zero.stage),
            offload_optimizer=offloads(zero.offload_optimizer),
            offload_param=offloads(zero.offload_param),
            reduce_bucket=int(zero.reduce_bucket_size),
            num_buckets=(2 if zero.overlap_comm else 1) if zero.contiguous_gradients else 0,
            max_live=int(zero.max_live_parameters),
            prefetch=int(zero.prefetch_bucket_size),
            sub_group=int(zero.sub_group_size),
        )

    @property
    def name(self) -> str:
        """Name for readers, such as "ZeRO-3, offload"."""
        return f"ZeRO-{self.stage}" + (", offload" if self.offload_optimizer or self.offload_param else "")

    def variants(self) -> list[ZeroSettings]:
        """These settings and the other stages and offloads, with the same buckets."""
        others = [(1, False, False), (2, False, False), (2, True, False), (3, False, False), (3, True, True)]
        made = [
            replace(self, stage=stage, offload_optimizer=optimizer, offload_param=param)
            for stage, optimizer, param in others
        ]
        return made if self in made else [self, *made]


@dataclass(frozen=True)
class StateMemory:
    """Bytes of DeepSpeed's state on one rank.

    Attributes:
        weights: The parameters as the engine holds them between calls.
        gradients: Gradients while chunks run backward.
        kept_gradients: The part of the gradients that stays allocated between steps.
        optimizer: Master weights and moments.
        buffers: Buffers while chunks run: gathered weights, and gradients waiting for or in reduction.
        kept_buffers: The part of the buffers that stays allocated between steps.
        reduction: Extra memory to reduce and update after the last chunk, when activations are freed.
        host: Everything in host memory.
    """

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    kept_gradients: float = 0.0
    kept_buffers: float = 0.0
    reduction: float = 0.0
    host: float = 0.0

    @property
    def in_pass(self) -> float:
        """Bytes on the device while chunks run."""
        return self.weights + self.gradients + self.optimizer + self.buffers

    @property
    def in_update(self) -> float:
        """Bytes on the device after the last chunk."""
        return self.weights + self.gradients + self.optimizer + self.kept_buffers + self.reduction

    @property
    def at_rest(self) -> float:
        """Bytes between steps, on the device and in host memory."""
        return self.weights + self.optimizer + self.kept_gradients + self.kept_buffers + self.host


def state_memory(size: ModelSize, zero: ZeroSettings, num_ranks: int) -> StateMemory:
    """State of one of `num_ranks` ranks."""
    partitioned = _stage_3(size, zero, num_ranks) if zero.stage == 3 else _stage_1_or_2(size, zero, num_ranks)
    return _offloaded(partitioned, size, zero, num_ranks)


def _stage_1_or_2(size: ModelSize, zero: ZeroSettings, num_ranks: int) -> StateMemory:
    shard = size.trainable / num_ranks
    weights, optimizer = float(size.weight_bytes), _OPTIMIZER_BYTES * shard
    if size.in_float32:
        # Gradients are whole on every rank until the one reduction.
        gradients = float(_FLOAT32 * size.trainable)
        reduction = _FLOAT32 * (zero.num_buckets * zero.reduce_bucket + shard)
        return StateMemory(weights, gradients, optimizer, buffers=0.0, reduction=reduction)
    if zero.stage == 1 and not zero.offload_optimizer:
        # DeepSpeed's BF16_Optimizer: float32 sums of all gradients, and the current chunk's in bfloat16.
        sums = float(_FLOAT32 * size.trainable)
        return StateMemory(weights, sums + _BFLOAT16 * size.trainable, optimizer, 0.0, kept_gradients=sums)
    buckets = float(_BFLOAT16 * zero.num_buckets * zero.reduce_bucket)
    return StateMemory(weights, _FLOAT32 * shard, optimizer, buckets + _FLOAT32 * _in_reduction(size, zero))


def _stage_3(size: ModelSize, zero: ZeroSettings, num_ranks: int) -> StateMemory:
    shard = size.trainable / num_ranks
    sums, bucket = _FLOAT32 * shard, float(_FLOAT32 * zero.reduce_bucket)
    live = min(size.total, zero.max_live + zero.prefetch) + size.largest
    buffers = bucket + live * max(size.frozen_bytes, size.trainable_bytes)
    in_reduction = float(_FLOAT32 * _in_reduction(size, zero))
    if size.in_float32:
        gradients, reduction = sums + _FLOAT32 * size.trainable, in_reduction
    else:
        gradients, reduction = sums, _FLOAT32 * min(shard, zero.sub_group)
        buffers += in_reduction * (1 + 1 / num_ranks)
    return StateMemory(
        size.weight_bytes / num_ranks, gradients, _OPTIMIZER_BYTES * shard, buffers, sums, bucket, reduction
    )


def _in_reduction(size: ModelSize, zero: ZeroSettings) -> int:
    """Elements reduced at a time."""
    return max(min(zero.reduce_bucket, size.trainable), size.largest)


def _offloaded(state: StateMemory, size: ModelSize, zero: ZeroSettings, num_ranks: int) -> StateMemory:
    """Moves what the settings offload to host memory."""
    shard = size.trainable / num_ranks
    if zero.offload_optimizer:
        host = state.optimizer + _FLOAT32 * shard
        if zero.stage == 3:  # gradients twice: their sums, and the copy that the update reads
            host += _FLOAT32 * shard
        else:  # staging buffers: new weights to the device, gradients from it
            host += size.trainable_bytes * (shard + 2 * size.largest)
        gradients = float(_FLOAT32 * size.trainable) if size.in_float32 else 0.0
        state = replace(state, optimizer=0.0, gradients=gradients, kept_gradients=0.0, host=state.host + host)
    if zero.offload_param:
        state = replace(state, weights=0.0, host=state.host + state.weights)
    return state
