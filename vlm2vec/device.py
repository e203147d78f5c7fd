"""The device that a program runs on: decided once, never silently a CPU, and described in one line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm2vec.errors import InputError

# DeepSpeed's own variable: "cpu" runs on CPU ranks although there is a GPU.
ACCELERATOR_VARIABLE = "DS_ACCELERATOR"
# Lengths of chunks vary, and kept graphs fill the memory: growing segments keep it from being cut up.
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def asked_for_cpu() -> bool:
    """Whether the environment asks for the CPU, GPU or not."""
    return os.environ.get(ACCELERATOR_VARIABLE) == "cpu"


def on_cpu() -> bool:
    """Whether ranks run on the CPU with gloo: no accelerator is there, or the CPU is asked for."""
    return asked_for_cpu() or not torch.accelerator.is_available()


def unseen_gpu(devices: Path = Path("/dev")) -> str | None:
    """What speaks for a GPU that torch cannot use; None if nothing does, or the CPU is asked for.

    A run would else go to the CPU without a word, a thousand times slower: with a driver too old for torch's CUDA.

    Args:
        devices: Folder in which a driver puts its devices.
    """
    if asked_for_cpu() or torch.accelerator.is_available():
        return None
    found = sorted(devices.glob("nvidia*"))
    device = f"{found[0]} is there, but " if found else ""
    if torch.version.cuda is not None:
        return f"{device}torch, built for CUDA {torch.version.cuda}, finds no GPU"
    return f"{device}torch is built without CUDA" if found else None


def choose_accelerator() -> None:
    """Tells DeepSpeed, before it is imported, that there is none; it warns where it has to find out by itself."""
    if on_cpu():
        os.environ.setdefault(ACCELERATOR_VARIABLE, "cpu")


def prepare_device() -> None:
    """What has to be decided before DeepSpeed is imported and the device is used.

    Raises:
        InputError: A GPU seems to be there and cannot be used.
    """
    unseen = unseen_gpu()
    if unseen is not None:
        raise InputError(
            f"{unseen}: update the driver or install a torch for it (python -m vlm2vec.doctor says which), or set "
            f"{ACCELERATOR_VARIABLE}=cpu to run on the CPU"
        )
    choose_accelerator()
    if on_cpu():
        return
    os.environ.setdefault(*_ALLOCATOR)
    # cuDNN's attention builds an execution plan for every new shape, and token budgets make new shapes all the time;
    # reports of NaN gradients on H100 speak against it too. The flash kernel takes the same calls.
    torch.backends.cuda.enable_cudnn_sdp(False)


def choose_kernels(deterministic: bool, is_float32: bool) -> None:
    """Decides which kernels torch may use in this process.

    Args:
        deterministic: Only kernels that give the same bits in every run; an operator that has none raises an error.
            Otherwise, on a GPU, the backward passes of attention and of `index_select` add up in any order.
        is_float32: The run computes in float32: no kernel may round its inputs to TensorFloat-32.
    """
    if is_float32:
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


@dataclass(frozen=True)
class DeviceDescription:
    """Where and with what a program computes, for its first line and its records."""

    device: str
    backend: str
    attention: str
    optimizer: str = ""

    def __str__(self) -> str:
        words = [self.device, self.backend, f"attention {self.attention}", self.optimizer]
        return ", ".join(word for word in words if word)


def describe_device(device: torch.device, backend: str, attention: str, optimizer: Any = None) -> DeviceDescription:
    """Describes this rank's device.

    Args:
        device: Where the model is.
        backend: Of the collectives, such as "nccl".
        attention: The model's attention implementation, such as "sdpa".
        optimizer: The torch optimizer that steps, if any.
    """
    name = f"CPU ({torch.get_num_threads()} threads a rank)"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type != "cpu":
        name = str(device)
    return DeviceDescription(name, backend, attention, "" if optimizer is None else _optimizer_name(optimizer))


def _optimizer_name(optimizer: Any) -> str:
    kind = type(optimizer)
    fused = " fused" if optimizer.defaults.get("fused") else ""
    on_host = next((each.device.type for group in optimizer.param_groups for each in group["params"]), "cpu") == "cpu"
    threads = f" on the host ({torch.get_num_threads()} threads a rank)" if on_host and not on_cpu() else ""
    return f"{kind.__module__.split('.')[0]} {kind.__name__}{fused}{threads}"


def device_of_rank() -> torch.device:
    """This rank's GPU, or the CPU where there is none or the environment asks for it."""
    if asked_for_cpu() or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
