"""Choosing the device: the CPU is never used silently, and the choice is reported in one line."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vlm2vec import device
from vlm2vec.errors import InputError
from vlm2vec.training.engine import share_cores


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})


def pretend(monkeypatch: pytest.MonkeyPatch, available: bool, cuda: str | None) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    monkeypatch.setattr(torch.version, "cuda", cuda)


def test_no_gpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, available=False, cuda=None)
    assert device.unseen_gpu(tmp_path) is None
    assert device.on_cpu()


@pytest.mark.parametrize("has_device", [False, True])
@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_a_gpu_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_device: bool, cuda: str | None
) -> None:
    pretend(monkeypatch, available=False, cuda=cuda)
    if has_device:
        (tmp_path / "nvidia0").touch()
    found = device.unseen_gpu(tmp_path)
    assert (found is None) == (not has_device and cuda is None)
    assert not has_device or "nvidia0 is there" in str(found)
    assert cuda is None or "CUDA 13.0" in str(found)
    assert (device.unseen_gpu(tmp_path, needs_driver=True) is None) == (not has_device)
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
    assert device.unseen_gpu(tmp_path) is None


def test_a_run_does_not_go_to_the_cpu_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "unseen_gpu", lambda: "torch, built for CUDA 13.0, finds no GPU")
    with pytest.raises(InputError, match=r"finds no GPU: update the driver .* DS_ACCELERATOR=cpu"):
        device.prepare_device()


def test_the_cpu_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, available=True, cuda="13.0")
    assert not device.on_cpu()
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
    assert device.on_cpu()


def test_the_gpu_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device.device_of_rank() == torch.device("cuda", 0)
    monkeypatch.setitem(os.environ, "LOCAL_RANK", "6")
    assert device.device_of_rank() == torch.device("cuda", 2)
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
    assert device.device_of_rank() == torch.device("cpu")


def test_what_is_decided_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, available=True, cuda="13.0")
    chosen: list[bool] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", chosen.append)
    device.prepare_device()
    assert chosen == [False]
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "DS_ACCELERATOR" not in os.environ


def test_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch.backends, "cudnn", settings)
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=True))
    chosen: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", chosen.append)
    device.choose_kernels(deterministic=False, is_float32=False)
    assert settings.allow_tf32
    assert not chosen
    device.choose_kernels(deterministic=True, is_float32=True)
    assert not settings.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert chosen == [True]


@pytest.mark.parametrize(("threads", "words"), [(1, "1 thread"), (2, "2 threads")])
def test_the_description(threads: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True)
    found = str(device.describe_device(torch.device("cpu"), "gloo", "sdpa", optimizer))
    assert found == f"CPU ({words} a rank), gloo, attention sdpa, torch AdamW fused"


def test_an_optimizer_on_the_host_gets_the_ranks_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers set one thread a rank."""
    given: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    offloading = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    share_cores(offloading)
    assert given == []
    os.environ["LOCAL_SIZE"] = "4"
    share_cores(offloading)
    share_cores({"stage": 2})
    assert given == [4]
    os.environ["LOCAL_WORLD_SIZE"] = "32"
    share_cores(offloading)
    assert given == [4, 1]
