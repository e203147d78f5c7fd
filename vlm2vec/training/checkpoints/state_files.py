"""Opens DeepSpeed's state files, which are pickles, so that a malicious file cannot run code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.serialization import config as serialization


@contextmanager
def safe_state_files(mapped: bool = False) -> Iterator[None]:
    """Context in which every `torch.load`, also DeepSpeed's, accepts only tensors, plain values and three of its types.

    DeepSpeed 0.19.8 loads with `weights_only=False` everywhere; torch's environment variable overrides that.

    Args:
        mapped: Memory-map the files, so that a tensor's bytes are read when they are used.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with (
        torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]),
        environment(TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"),
        serialization.patch("load.mmap", mapped),  # type: ignore[attr-defined]
    ):
        yield


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Sets environment variables and restores their old values at the end."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
