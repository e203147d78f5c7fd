"""Chooses a program's device, once and never silently the CPU, and describes it in one line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm2vec.errors import InputError
from vlm2vec.messages.words import counted

# DeepSpeed's variable: "cpu" runs ranks on the CPU even if there is a GPU.
ACCELERATOR_VARIABLE = "DS_ACCELERATOR"
# Chunks vary in length and kept graphs fill the memory: expandable segments avoid fragmentation.
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def asked_for_cpu() -> bool:
    """Whether the environment asks for the CPU, even if there is a GPU."""
    return os.environ.get(ACCELERATOR_VARIABLE) == "cpu"


def on_cpu() -> bool:
    """Whether ranks run on the CPU with gloo: there is no accelerator, or the environment asks for the CPU."""
    return asked_for_cpu() or not torch.accelerator.is_available()


def unseen_gpu(devices: Path = Path("/dev"), needs_driver: bool = False) -> str | None:
    """Evidence of a GPU that torch cannot use; None if there is none, or the environment asks for the CPU.

    Otherwise a run with a driver too old for torch's CUDA would silently use the CPU, a thousand times slower.

    Args:
        devices: Folder in which a driver creates its device files.
        needs_driver: Only a driver is evidence. Otherwise a torch built for CUDA is too, as in a container that was
            started without its GPUs.
    """
    if asked_for_cpu() or torch.accelerator.is_available():
        return None
    found = sorted(devices.glob("nvidia*"))
    device = f"{found[0]} is there, but " if found else ""
    if torch.version.cuda is not None and (found or not needs_driver):
        return f"{device}torch, built for CUDA {torch.version.cuda}, finds no GPU"
    return f"{device}torch is built without CUDA" if found else None


def choose_accelerator() -> None:
    """Tells DeepSpeed, before it is imported, that there is no accelerator; it warns if it must detect that itself."""
    if on_cpu():
        os.environ.setdefault(ACCELERATOR_VARIABLE, "cpu")


def prepare_device() -> None:
    """Sets what must be set before DeepSpeed is imported and the device is used.

    Raises:
        InputError: There seems to be a GPU, but torch cannot use it.
    """
    unseen = unseen_gpu()
    if unseen is not None:
        raise InputError(
            f"{unseen}: update the driver or install a matching torch (python -m vlm2vec.doctor says which), or set "
            f"{ACCELERATOR_VARIABLE}=cpu to run on the CPU"
        )
    choose_accelerator()
    if on_cpu():
        return
    os.environ.setdefault(*_ALLOCATOR)
    # cuDNN's attention builds an execution plan for every new shape, and token budgets produce new shapes in every
    # step; there are also reports of NaN gradients on H100. The flash kernel takes the same calls.
    torch.backends.cuda.enable_cudnn_sdp(False)


def choose_kernels(deterministic: bool, is_float32: bool) -> None:
    """Sets which kernels torch may use in this process.

    Args:
        deterministic: Use only kernels that give the same bits in every run; an operator that has none raises an error.
            Otherwise, on a GPU, the backward passes of attention and `index_select` add in varying order.
        is_float32: Whether the run computes in float32; then no kernel may round its inputs to TensorFloat-32.
    """
    if is_float32:
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


@dataclass(frozen=True)
class DeviceDescription:
    """Device, backend, attention and optimizer of a program, for its first log line and its records."""

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
        device: Device of the model.
        backend: Backend of the collectives, such as "nccl".
        attention: The model's attention implementation, such as "sdpa".
        optimizer: The torch optimizer, if any.
    """
    name = f"CPU ({_threads()})"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type != "cpu":
        name = str(device)
    return DeviceDescription(name, backend, attention, "" if optimizer is None else _optimizer_name(optimizer))


def _threads() -> str:
    return f"{counted(torch.get_num_threads(), 'thread')} a rank"


def _optimizer_name(optimizer: Any) -> str:
    kind = type(optimizer)
    fused = " fused" if optimizer.defaults.get("fused") else ""
    on_host = next((each.device.type for group in optimizer.param_groups for each in group["params"]), "cpu") == "cpu"
    threads = f" on the host ({_threads()})" if on_host and not on_cpu() else ""
    return f"{kind.__module__.split('.')[0]} {kind.__name__}{fused}{threads}"


def device_of_rank() -> torch.device:
    """This rank's GPU, or the CPU where there is none or the environment asks for it."""
    if asked_for_cpu() or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
