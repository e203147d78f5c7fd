"""What DeepSpeed holds on a rank beside activations: weights, gradients, optimizer, its buffers. DeepSpeed 0.19.8.

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
    """Parameters of a model.

    Attributes:
        total: All of them.
        trainable: Those that are trained.
        language: Those that every item needs.
        vision: Those that images need besides; the rest never runs.
        largest: Elements of the largest parameter that is trained.
        trainable_bytes: Bytes of a trained weight in the engine: 2 (bfloat16, master weights beside it) or 4.
        frozen_bytes: Bytes of another weight.
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
        """Whether trained weights are float32: chunks' gradients then add up in them and are reduced once a step."""
        return self.trainable_bytes == _FLOAT32

    @property
    def weight_bytes(self) -> int:
        """Of all weights."""
        return self.trainable * self.trainable_bytes + (self.total - self.trainable) * self.frozen_bytes


@dataclass(frozen=True)
class ZeroSettings:
    """What of a DeepSpeed configuration decides about memory and traffic; counts are in elements.

    Attributes:
        stage: 1, 2 or 3.
        offload_optimizer: Master weights, moments and reduced gradients lie in host memory.
        offload_param: Weights lie in host memory (stage 3).
        reduce_bucket: Gradients reduced at a time.
        num_buckets: Buckets that exist at a time.
        max_live: Parameters of stage 3 that stay gathered at most.
        prefetch: Parameters of stage 3 that are gathered ahead.
        sub_group: Parameters of stage 3 that are updated at a time.
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
        """From the configuration's section; what it does not say is DeepSpeed's default."""
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
        """As people say it."""
        return f"ZeRO-{self.stage}" + (", offload" if self.offload_optimizer or self.offload_param else "")

    def variants(self) -> list[ZeroSettings]:
        """These settings, and beside them the other stages and offloads with the same buckets."""
        others = [(1, False, False), (2, False, False), (2, True, False), (3, False, False), (3, True, True)]
        made = [
            replace(self, stage=stage, offload_optimizer=optimizer, offload_param=param)
            for stage, optimizer, param in others
        ]
        return made if self in made else [self, *made]


@dataclass(frozen=True)
class StateMemory:
    """Bytes of one rank.

    Attributes:
        weights: The parameters as the engine holds them between calls.
        gradients: While chunks run backward.
        kept_gradients: The part of them whose memory stays from step to step.
        optimizer: Master weights and moments.
        buffers: While chunks run: what is gathered, waits to be reduced, or is being reduced.
        kept_buffers: The part of them whose memory stays from step to step.
        reduction: On top after the last chunk, when activations are gone: reducing and updating.
        host: In host memory.
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
        """On the device while chunks run."""
        return self.weights + self.gradients + self.optimizer + self.buffers

    @property
    def in_update(self) -> float:
        """On the device after the last chunk."""
        return self.weights + self.gradients + self.optimizer + self.kept_buffers + self.reduction

    @property
    def at_rest(self) -> float:
        """Between steps, on the device and in host memory."""
        return self.weights + self.optimizer + self.kept_gradients + self.kept_buffers + self.host


def state_memory(size: ModelSize, zero: ZeroSettings, num_ranks: int) -> StateMemory:
    """What one rank of `num_ranks` holds."""
    partitioned = _stage_3(size, zero, num_ranks) if zero.stage == 3 else _stage_1_or_2(size, zero, num_ranks)
    return _offloaded(partitioned, size, zero, num_ranks)


def _stage_1_or_2(size: ModelSize, zero: ZeroSettings, num_ranks: int) -> StateMemory:
    shard = size.trainable / num_ranks
    weights, optimizer = float(size.weight_bytes), _OPTIMIZER_BYTES * shard
    if size.in_float32:
        # Whole on every rank until they are reduced once.
        gradients = float(_FLOAT32 * size.trainable)
        reduction = _FLOAT32 * (zero.num_buckets * zero.reduce_bucket + shard)
        return StateMemory(weights, gradients, optimizer, buffers=0.0, reduction=reduction)
    if zero.stage == 1 and not zero.offload_optimizer:
        # DeepSpeed's BF16_Optimizer: float32 sums of all gradients beside the chunk's own in bfloat16.
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
    """Elements that are reduced at a time."""
    return max(min(zero.reduce_bucket, size.trainable), size.largest)


def _offloaded(state: StateMemory, size: ModelSize, zero: ZeroSettings, num_ranks: int) -> StateMemory:
    """With what the settings say moved to host memory."""
    shard = size.trainable / num_ranks
    if zero.offload_optimizer:
        host = state.optimizer + _FLOAT32 * shard
        if zero.stage == 3:  # gradients once as they add up, once as the update takes them
            host += _FLOAT32 * shard
        else:  # new weights on their way to the device, and gradients on their way from it
            host += size.trainable_bytes * (shard + 2 * size.largest)
        gradients = float(_FLOAT32 * size.trainable) if size.in_float32 else 0.0
        state = replace(state, optimizer=0.0, gradients=gradients, kept_gradients=0.0, host=state.host + host)
    if zero.offload_param:
        state = replace(state, weights=0.0, host=state.host + state.weights)
    return state
