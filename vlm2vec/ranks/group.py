"""The process group: joining, time limits, leaving, rank and size."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from vlm2vec.device import on_cpu, prepare_device
from vlm2vec.errors import InputError
from vlm2vec.ranks.launcher import device_index, free_port, is_launched, port_in_use, wait_for_port

# Ranks of an evaluation meet only between phases, and the first one may read for long while the others wait. The
# launcher notices a rank that dies.
_HOST_TIMEOUT = timedelta(days=1)


def own_rank() -> int:
    """This process's rank, from 0; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def prepare_environment() -> None:
    """Sets what must be set before DeepSpeed is imported and ranks meet.

    A start without a launcher becomes a run of one rank.

    Raises:
        InputError: The launcher's variables are incomplete.
    """
    prepare_device()
    if not is_launched():
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(free_port()))


def initialize_ranks(timeout_seconds: int, backend: str | None = None) -> torch.device:
    """Joins the process group of a training run through DeepSpeed; `close_ranks` leaves it.

    Args:
        timeout_seconds: Time limit of every collective.
        backend: Backend of the collectives; None: NCCL on GPUs, gloo on a CPU.

    Returns:
        This rank's device.

    Raises:
        InputError: The launcher's variables are incomplete, the port is in use, the first rank cannot be reached, or
            there are fewer devices than ranks.
    """
    prepare_environment()
    import deepspeed
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    # torch 2.13 renames two collectives and warns at every use of the old names, which older versions need.
    warnings.filterwarnings("ignore", message=r".*_tensor` is deprecated", category=FutureWarning)
    # A harmless warning, once per run on a GPU: the group below has its device.
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device under current context")
    if on_cpu():
        # DeepSpeed would compile this operator, which takes a minute and a compiler, and only inference needs it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = get_accelerator()
    local_rank = int(os.environ["LOCAL_RANK"])
    if not on_cpu():
        local_rank = device_index(os.environ, accelerator.device_count())
        accelerator.set_device(local_rank)
    wait_for_port()
    with _meeting_in_one_line():
        deepspeed.init_distributed(
            dist_backend=backend or accelerator.communication_backend_name(),
            timeout=timedelta(seconds=timeout_seconds),
            verbose=False,
        )
    return torch.device(accelerator.device_name(local_rank))


def set_collective_timeout(seconds: int) -> None:
    """Sets the time limit of every process group; groups that ZeRO makes would keep torch's 30 minutes."""
    groups = torch.distributed.distributed_c10d
    for group in list(groups._world.pg_map):
        groups._set_pg_timeout(timedelta(seconds=seconds), group)


def close_ranks() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def host_ranks() -> Iterator[None]:
    """Context in which the ranks that a launcher started form a process group; a single process has none.

    Ranks exchange only small messages, on the host: the backend is gloo on every device.

    Raises:
        InputError: The launcher's variables are incomplete, the port is in use, or the first rank cannot be reached.
    """
    if not is_launched() or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    wait_for_port()
    with _meeting_in_one_line():
        dist.init_process_group("gloo", timeout=_HOST_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _meeting_in_one_line() -> Iterator[None]:
    """Context that reports ranks that cannot meet as one line, an `InputError`."""
    try:
        yield
    except dist.DistNetworkError as error:
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        if "EADDRINUSE" in str(error):
            raise port_in_use(int(port)) from error
        raise InputError(f"rank 0 cannot be reached at {address}:{port}: {str(error).splitlines()[0]}") from error
