"""Checks this machine: package versions, accelerator, collectives, shared memory, process limits, compiler."""

from __future__ import annotations

import contextlib
import io
import math
import resource
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist
from packaging.requirements import Requirement

from vlm2vec.device import asked_for_cpu, choose_accelerator, unseen_gpu
from vlm2vec.doctor.finding import FAIL, OK, WARN, Finding, graded
from vlm2vec.errors import InputError
from vlm2vec.ranks import free_port
from vlm2vec.training.flags.engine_file import read_engine_file

DISTRIBUTION = "vlm2vec-deepspeed"
GIB = 2**30
# Bytes: fail below, warn below. Loader processes pass images to their rank through it, a few chunks each.
_SHARED_MEMORY = (GIB / 4, 8.0 * GIB)
_OPEN_FILES = (512, 4096)
_WHEELS = "pip install torch --index-url https://download.pytorch.org/whl/cu126"


def machine_findings(
    engine: Path | None = None, needed_shared_memory: Callable[[], float] | None = None
) -> Iterator[Finding]:
    """Runs all checks of this machine.

    Args:
        engine: The run's DeepSpeed settings; they decide whether something has to be compiled.
        needed_shared_memory: Returns the bytes that the run's plan asks for. None: check for what most runs need.
    """
    yield from versions()
    yield accelerator()
    yield communication()
    choose_accelerator()  # DeepSpeed is imported next
    if engine is not None:
        yield compiler(engine)
    yield shared_memory(Path("/dev/shm"), needed_shared_memory() if needed_shared_memory else None)
    yield from limits()


def versions(distribution: str = DISTRIBUTION) -> Iterator[Finding]:
    """Compares installed packages with the tested version ranges."""
    try:
        needed = [Requirement(line) for line in metadata.requires(distribution) or []]
    except metadata.PackageNotFoundError:
        yield Finding(WARN, f"{distribution} is not installed, so its version ranges are unknown", "make install")
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


def accelerator(devices: Path = Path("/dev")) -> Finding:
    """Reports GPUs, their memory and bfloat16 support.

    Args:
        devices: Folder in which a driver puts its devices.
    """
    enough = "enough for the demo; real runs need GPUs"
    if asked_for_cpu():
        return Finding(WARN, "DS_ACCELERATOR=cpu: runs on CPU ranks", enough)
    if not torch.accelerator.is_available():
        return _no_accelerator(unseen_gpu(devices), enough)
    count, kind = torch.accelerator.device_count(), torch.accelerator.current_accelerator()
    if kind is None or kind.type != "cuda":
        return Finding(WARN, f"{count} accelerators of type {kind}", "only NVIDIA GPUs and CPUs are known to work")
    memory = [torch.cuda.get_device_properties(index).total_memory / GIB for index in range(count)]
    what = f"{count} x {torch.cuda.get_device_name(0)}, {min(memory):.0f} GiB"
    if not torch.cuda.is_bf16_supported():
        return Finding(WARN, f"{what}, no bfloat16", "train without --bf16: twice the memory")
    return Finding(OK, what)


def _no_accelerator(unseen: str | None, enough: str) -> Finding:
    or_cpu = "DS_ACCELERATOR=cpu runs on CPU ranks"
    if unseen is None:
        return Finding(WARN, "no accelerator: runs on CPU ranks", enough)
    if torch.version.cuda is not None:
        older = f"the driver may be too old for that (see nvidia-smi): update it, or {_WHEELS} (or cu128)"
        return Finding(FAIL, unseen, f"{older}; {or_cpu}")
    return Finding(FAIL, unseen, f"{_WHEELS} (or cu128, cu130); {or_cpu}")


def communication() -> Finding:
    """Runs a collective with a single rank, through the backend that ranks would use."""
    on_gpu = torch.cuda.is_available() and not asked_for_cpu()
    backend = "nccl" if on_gpu else "gloo"
    try:
        dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
        dist.all_reduce(torch.ones(1, device="cuda" if on_gpu else "cpu"))
    except (RuntimeError, ValueError, OSError) as error:
        return Finding(FAIL, f"{backend}: {' '.join(str(error).split())[:200]}", "NCCL_DEBUG=INFO says more")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return Finding(OK, f"{backend} runs a collective")


def compiler(engine: Path) -> Finding:
    """Checks what DeepSpeed has to compile: its NVMe access, at the first start of a run that offloads there.

    Args:
        engine: The run's DeepSpeed settings.
    """
    try:
        settings = read_engine_file(engine)["zero_optimization"]
    except InputError as error:
        return Finding(FAIL, str(error), "see ds_configs/")
    offloads = [settings.get(name) or {} for name in ("offload_optimizer", "offload_param")]
    if all(offload.get("device") != "nvme" for offload in offloads):
        return Finding(OK, f"{engine.name}: nothing to compile, the optimizer is torch's")
    missing = [tool for tool in ("ninja", "c++") if shutil.which(tool) is None]
    if missing:
        remedy = "install ninja and a C++ compiler, and put them on the PATH (.venv/bin holds ninja)"
        return Finding(FAIL, f"{engine.name}: no {', '.join(missing)} to compile DeepSpeed's access to NVMe", remedy)
    if not has_libaio():
        remedy = "install it (libaio-dev on Debian and Ubuntu, libaio-devel on Fedora), or offload to the CPU"
        return Finding(FAIL, f"{engine.name}: no libaio, which DeepSpeed's access to NVMe needs", remedy)
    return cuda_compiler(engine.name)


def has_libaio() -> bool:
    """Whether library and header of libaio are installed, by DeepSpeed's own test: it compiles a call."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    with contextlib.redirect_stdout(io.StringIO()):
        return bool(AsyncIOBuilder().is_compatible(verbose=False))


def cuda_compiler(engine: str) -> Finding:
    """Compares nvcc with torch's CUDA version, by DeepSpeed's rule for what it compiles."""
    from deepspeed.ops.op_builder import builder

    remedy = f"install the CUDA toolkit {torch.version.cuda}, or offload to the CPU, which compiles nothing"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.assert_no_cuda_mismatch()
    except (builder.MissingCUDAException, builder.CUDAMismatchException) as error:
        return Finding(WARN, f"{engine}: {' '.join(str(error).removeprefix('>- ').split())}", remedy)
    return Finding(OK, f"{engine}: found ninja, c++ and nvcc for CUDA {torch.version.cuda}")


def shared_memory(folder: Path, needed: float | None = None) -> Finding:
    """Checks the free space of the file system behind shared memory.

    Args:
        folder: Mount point.
        needed: Most bytes that a run's loader processes take.
    """
    if not folder.is_dir():
        return Finding(
            FAIL, f"no {folder}", "mount a tmpfs there; loader processes pass images to their rank through it"
        )
    free = shutil.disk_usage(folder).free
    what = f"{free / GIB:.1f} GiB shared memory free in {folder}"
    fail_below, warn_below = _SHARED_MEMORY
    if needed is not None:
        # The plan counts every image at its full size.
        what, fail_below, warn_below = f"{what}, the run needs at most {needed / GIB:.1f} GiB", needed / 2, needed
    size = math.ceil(max(warn_below, _SHARED_MEMORY[1]) / GIB)
    remedy = f"docker run --shm-size={size}g, an emptyDir of medium Memory, or fewer --dataloader_num_workers"
    return graded(free, what, remedy, fail_below, warn_below)


def limits() -> Iterator[Finding]:
    """Checks how many files a process may open and how much memory it may lock."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = float("inf") if files == resource.RLIM_INFINITY else files
    yield graded(many, f"{many:g} open files (ulimit -n)", "ulimit -n 65536", *_OPEN_FILES)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if locked != resource.RLIM_INFINITY and Path("/sys/class/infiniband").is_dir():
        yield Finding(WARN, f"{locked / GIB:.2f} GiB locked memory (ulimit -l)", "ulimit -l unlimited, for InfiniBand")
