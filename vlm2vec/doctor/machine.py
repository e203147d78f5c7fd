"""This machine: versions, accelerator, communication, memory between processes, limits, compiler."""

from __future__ import annotations

import resource
import shutil
import socket
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist
from packaging.requirements import Requirement

from vlm2vec.doctor.finding import FAIL, OK, WARN, Finding, graded

DISTRIBUTION = "vlm2vec-deepspeed"
GIB = 2**30
# Loader processes hand crops to their rank through it: a few chunks each.
_SHARED_MEMORY = (GIB // 4, 8 * GIB)
_OPEN_FILES = (512, 4096)


def machine_findings() -> Iterator[Finding]:
    """All checks of this machine."""
    yield from versions()
    yield accelerator()
    yield communication()
    yield compiler()
    yield shared_memory(Path("/dev/shm"))
    yield from limits()


def versions(distribution: str = DISTRIBUTION) -> Iterator[Finding]:
    """Installed packages against the ranges that are tested."""
    try:
        needed = [Requirement(line) for line in metadata.requires(distribution) or []]
    except metadata.PackageNotFoundError:
        yield Finding(WARN, f"{distribution} is not installed, so its ranges are not known", "make install")
        return
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        yield _version(requirement)


def _version(requirement: Requirement) -> Finding:
    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(FAIL, f"{requirement.name} is not installed", f"pip install '{wanted}'")
    if requirement.specifier.contains(found, prereleases=True):
        return Finding(OK, f"{requirement.name} {found}")
    return Finding(FAIL, f"{requirement.name} {found} is outside of {requirement.specifier}", f"pip install '{wanted}'")


def accelerator() -> Finding:
    """GPUs, their memory and bfloat16."""
    if not torch.accelerator.is_available():
        if torch.version.cuda:
            remedy = "see nvidia-smi; the driver must be new enough for torch's CUDA " + torch.version.cuda
            return Finding(FAIL, "torch is built for CUDA and finds no GPU", remedy)
        return Finding(WARN, "no accelerator: runs on CPU ranks", "enough for the miniature; real runs need GPUs")
    count, kind = torch.accelerator.device_count(), torch.accelerator.current_accelerator()
    if kind is None or kind.type != "cuda":
        return Finding(WARN, f"{count} accelerators of type {kind}", "only NVIDIA GPUs and CPUs are known to work")
    memory = [torch.cuda.get_device_properties(index).total_memory / GIB for index in range(count)]
    what = f"{count} x {torch.cuda.get_device_name(0)}, {min(memory):.0f} GiB"
    if not torch.cuda.is_bf16_supported():
        return Finding(WARN, f"{what}, no bfloat16", "train without --bf16: twice the memory")
    return Finding(OK, what)


def communication() -> Finding:
    """A collective through the backend that ranks would use, alone."""
    on_gpu = torch.cuda.is_available()
    backend = "nccl" if on_gpu else "gloo"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
        dist.all_reduce(torch.ones(1, device="cuda" if on_gpu else "cpu"))
    except (RuntimeError, ValueError, OSError) as error:
        return Finding(FAIL, f"{backend}: {' '.join(str(error).split())[:200]}", "NCCL_DEBUG=INFO says more")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return Finding(OK, f"{backend} runs a collective")


def compiler() -> Finding:
    """DeepSpeed compiles its fused optimizer at the first start on a GPU; CPU ranks use torch's."""
    if not torch.cuda.is_available():
        return Finding(OK, "no compiler needed on a CPU")
    missing = [tool for tool in ("nvcc", "ninja", "c++") if shutil.which(tool) is None]
    if missing:
        remedy = f"install the CUDA toolkit {torch.version.cuda}, ninja and a C++ compiler, and put them on the PATH"
        return Finding(FAIL, f"no {', '.join(missing)}: DeepSpeed cannot compile its optimizer", remedy)
    return Finding(OK, "nvcc, ninja and c++ are there")


def shared_memory(folder: Path) -> Finding:
    """Free space of the file system behind memory that processes share."""
    if not folder.is_dir():
        return Finding(FAIL, f"no {folder}", "mount a tmpfs there; loader processes hand over crops through it")
    free = shutil.disk_usage(folder).free
    remedy = "docker run --shm-size=32g, or an emptyDir of medium Memory; or --dataloader_num_workers 0"
    return graded(free, f"{free / GIB:.1f} GiB shared memory free in {folder}", remedy, *_SHARED_MEMORY)


def limits() -> Iterator[Finding]:
    """What a process may open and lock."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = float("inf") if files == resource.RLIM_INFINITY else files
    yield graded(many, f"{many:g} open files (ulimit -n)", "ulimit -n 65536", *_OPEN_FILES)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if locked != resource.RLIM_INFINITY and Path("/sys/class/infiniband").is_dir():
        yield Finding(WARN, f"{locked / GIB:.2f} GiB locked memory (ulimit -l)", "ulimit -l unlimited, for InfiniBand")
