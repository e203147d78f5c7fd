"""Each check of the doctor reports ok, or the problem with a remedy."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections import namedtuple
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

from vlm2vec.doctor import machine
from vlm2vec.doctor.__main__ import main
from vlm2vec.doctor.data import data_findings, read_speed
from vlm2vec.doctor.finding import FAIL, OK, WARN, Finding
from vlm2vec.doctor.nodes import node_findings, own_address, public_addresses
from vlm2vec.errors import InputError

REPOSITORY = Path(__file__).parents[2]
OFFLOAD = REPOSITORY / "ds_configs" / "zero2_offload.json"
Usage = namedtuple("Usage", "total used free")


def statuses(findings: Sequence[Finding]) -> set[str]:
    return {finding.status for finding in findings}


def test_this_machine_runs_the_tests_so_nothing_fails(
    mini_shards_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPU ranks, whatever else the machine has."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert main(["--dataset_name", str(mini_shards_dir), "--deepspeed", str(OFFLOAD)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok") and "gloo runs" in line for line in lines)
    assert any(line.startswith("warn") and "DS_ACCELERATOR=cpu" in line for line in lines)
    assert any("samples in" in line for line in lines)
    assert any("MB/s" in line for line in lines)
    assert lines[-1].endswith("0 fail")


def test_a_failure_is_exit_code_1_and_names_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert main(["--dataset_name", str(tmp_path)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    assert len(failed) == 1
    assert "manifest" in failed[0]
    assert "-> run python -m data_prep.convert" in failed[0]


def test_versions_outside_of_the_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.9.1", "deepspeed": "0.1", "numpy": "2.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    needed = ["torch>=2.9", "deepspeed>=0.19.8", "peft>=0.20", 'ruff>=0.9; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda name: needed)
    monkeypatch.setattr(metadata, "version", version)
    torch, deepspeed, peft = machine.versions("anything")
    assert (torch.status, deepspeed.status, peft.status) == (OK, FAIL, FAIL)
    assert deepspeed.remedy == "pip install 'deepspeed>=0.19.8'"
    assert "not installed" in peft.what


@pytest.mark.parametrize(("free", "status"), [(64 * 2**20, FAIL), (2**30, WARN), (2**40, OK)])
def test_shared_memory(free: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(free, 0, free))
    assert machine.shared_memory(tmp_path).status == status
    assert machine.shared_memory(tmp_path / "absent").status == FAIL


def test_shared_memory_that_a_plan_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for free, status in ((9, FAIL), (15, WARN), (30, OK)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: Usage(0, 0, free * 2**30))
        found = machine.shared_memory(tmp_path, 20.0 * 2**30)
        assert (found.status, "needs at most 20.0 GiB" in found.what) == (status, True)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 2**24))
    assert "--shm-size=20g" in machine.shared_memory(tmp_path, 20.0 * 2**30).remedy
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    recipe = str(REPOSITORY / "launch" / "recipes" / "full_2048.yaml")
    assert main(["--config", recipe, "--deepspeed", str(OFFLOAD)]) == 1
    assert "the run needs at most" in capsys.readouterr().out
    with pytest.raises(InputError, match="--config without --deepspeed"):
        main(["--config", recipe])


def test_a_plan_does_not_hide_a_gpu_that_torch_does_not_see(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "to be restored")
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setattr(machine, "unseen_gpu", lambda devices: "torch, built for CUDA 13.0, finds no GPU")
    recipe = str(REPOSITORY / "launch" / "recipes" / "lora_1024.yaml")
    assert main(["--config", recipe, "--deepspeed", str(OFFLOAD)]) == 1
    assert "fail torch, built for CUDA 13.0, finds no GPU" in capsys.readouterr().out


@pytest.mark.parametrize(("files", "status"), [(256, FAIL), (1024, WARN), (resource.RLIM_INFINITY, OK)])
def test_open_files(files: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, files))
    assert next(machine.limits()).status == status


def no_gpu(monkeypatch: pytest.MonkeyPatch, built_for: str | None) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)


def test_a_gpu_that_torch_does_not_see_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a driver that is older than torch's CUDA: a run would go on the CPU without a word."""
    no_gpu(monkeypatch, "13.0")
    assert machine.accelerator(tmp_path).status == FAIL  # torch's CUDA alone
    (tmp_path / "nvidia0").touch()
    found = machine.accelerator(tmp_path)
    assert found.status == FAIL
    assert "CUDA 13.0" in found.what
    for part in ("driver", "https://download.pytorch.org/whl/cu126", "cu128", "DS_ACCELERATOR=cpu"):
        assert part in found.remedy
    no_gpu(monkeypatch, None)
    assert machine.accelerator(tmp_path).status == FAIL
    assert "without CUDA" in machine.accelerator(tmp_path).what
    (tmp_path / "nvidia0").unlink()
    assert machine.accelerator(tmp_path).status == WARN


def test_a_cpu_that_was_asked_for_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_gpu(monkeypatch, "13.0")
    (tmp_path / "nvidia0").touch()
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert machine.accelerator(tmp_path).status == WARN
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.communication().what == "gloo runs a collective"


def test_setup_asks_for_the_deepspeed_that_is_tested() -> None:
    """Older ones lose bfloat16 gradients and crash with PEFT, ZeRO-3 and checkpointing."""
    assert '"deepspeed>=0.19.8"' in (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    (pinned,) = re.findall(r"^deepspeed==(.+)$", (REPOSITORY / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    for version in (pinned, metadata.version("deepspeed")):
        assert Version(version) >= Version("0.19.8")


def gpu_with_nvcc(folder: Path, monkeypatch: pytest.MonkeyPatch, release: str | None) -> None:
    """A stand-in: torch for CUDA 13.0 sees a GPU; the toolkit has another version, or none."""
    from torch.utils import cpp_extension

    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("DS_SKIP_CUDA_CHECK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(shutil, "which", lambda tool: f"/bin/{tool}")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(folder))
    if release is not None:
        nvcc = folder / "bin" / "nvcc"
        nvcc.parent.mkdir(exist_ok=True)
        nvcc.write_text(f"#!/bin/sh\necho Cuda compilation tools, release {release}, V{release}.88\n")
        nvcc.chmod(0o755)


def nvme_settings(folder: Path) -> Path:
    """Settings that offload moments to NVMe."""
    settings = json.loads(OFFLOAD.with_name("zero3_offload.json").read_text(encoding="utf-8"))
    settings["zero_optimization"]["offload_optimizer"] = {"device": "nvme", "nvme_path": str(folder)}
    path = folder / "nvme.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


def test_nothing_is_compiled_but_for_nvme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu_with_nvcc(tmp_path, monkeypatch, None)
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    for settings in OFFLOAD.parent.glob("*.json"):
        assert machine.compiler(settings).status == OK
    missing = machine.compiler(nvme_settings(tmp_path))
    assert (missing.status, "ninja, c++" in missing.what) == (FAIL, True)
    assert machine.compiler(tmp_path / "absent.json").status == FAIL


@pytest.mark.parametrize(("release", "status"), [(None, WARN), ("12.4", WARN), ("13.0", OK)])
def test_nvcc_is_held_against_torchs_cuda(
    release: str | None, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu_with_nvcc(tmp_path, monkeypatch, release)
    monkeypatch.setattr(machine, "has_libaio", lambda: True)
    found = machine.compiler(nvme_settings(tmp_path))
    assert found.status == status
    assert "nvme.json" in found.what
    if release == "12.4":
        assert "12.4" in found.what
        assert "toolkit 13.0" in found.remedy


@pytest.mark.parametrize("is_there", [False, True])
def test_libaio_is_tried_as_deepspeed_does(
    is_there: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A call of it is compiled and linked; the header and library of this machine do not matter."""
    gpu_with_nvcc(tmp_path, monkeypatch, "13.0")
    from deepspeed.ops.op_builder import AsyncIOBuilder  # asks for the accelerator at its import

    builder = type(AsyncIOBuilder())
    asked: list[tuple[str, tuple[str, ...]]] = []

    def has_function(_: Any, name: str, libraries: tuple[str, ...], **__: Any) -> bool:
        asked.append((name, libraries))
        return is_there

    monkeypatch.setattr(builder, "has_function", has_function)
    found = machine.compiler(nvme_settings(tmp_path))
    assert asked == [("io_submit", ("aio",))]
    assert (found.status, "libaio-dev" in found.remedy) == ((OK, False) if is_there else (FAIL, True))
    assert capfd.readouterr().out == ""


def test_damaged_shards_fail(mini_shards_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(mini_shards_dir, copy)
    assert statuses(list(data_findings(copy))) <= {OK, WARN}
    next(copy.glob("*/*.tar")).unlink()
    assert statuses(list(data_findings(copy))) == {FAIL}


def test_a_slow_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "shard.tar"
    file.write_bytes(bytes(10**6))
    for cold, warm, status in ((500.0, 5000.0, OK), (50.0, 5000.0, WARN), (5.0, 5000.0, WARN), (5.0, 6.0, FAIL)):
        speeds = iter((cold, warm))
        monkeypatch.setattr("vlm2vec.doctor.data._megabytes_a_second", lambda _, speeds=speeds: next(speeds))
        assert read_speed(file).status == status


def hostfile(folder: Path, text: str) -> Path:
    path = folder / "hostfile"
    path.write_text(text)
    return path


def test_nodes_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that nobody knows, a node that refuses, a node that answers; ssh is a script."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\ncase "$*" in *127.0.0.2*) echo Permission denied >&2; exit 255;; esac\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    path = hostfile(tmp_path, "no-such-node.invalid slots=1\n127.0.0.2 slots=1\n127.0.0.1 slots=1\n")
    pdsh, unknown, refusing, answering, _ = node_findings(path)
    assert (pdsh.status, unknown.status, refusing.status, answering.status) == (WARN, FAIL, FAIL, OK)
    assert "Permission denied" in refusing.what
    assert "ssh-copy-id" in refusing.remedy


def test_what_ssh_reaches_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user, an alias of ssh's configuration, and a node behind a jump host, which has no address here."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\ncase "$*" in *-G*alias) echo hostname 127.0.0.3;; esac\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    names = ["root@192.0.2.1", "alias", "root@behind-a-jump-host.invalid"]
    path = hostfile(tmp_path, "".join(f"{name} slots=1\n" for name in names))
    _, *found, _ = node_findings(path)
    assert [finding.status for finding in found] == [OK, OK, OK]
    for finding, name in zip(found, names, strict=True):
        assert finding.what.startswith(name)
    assert "(192.0.2.1), where ranks meet" in found[0].what
    assert "(127.0.0.3)" in found[1].what


def test_an_interface_settles_which_address_ranks_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [(0, 0, 0, "", ("127.0.1.1", 0))])
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    assert own_address(2).status == WARN
    assert own_address(1).status == OK
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert own_address(2).status == OK


def test_public_addresses_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert list(public_addresses(["10.0.0.7", "127.0.0.1", "192.168.3.4", "fd00::1", "absent.invalid"])) == []
    monkeypatch.setenv("MASTER_ADDR", "2606:4700::1111")
    [found] = public_addresses(["10.0.0.7", "8.8.8.8"])
    assert found.status == WARN
    assert "2606:4700::1111 (2606:4700::1111), 8.8.8.8 (8.8.8.8)" in found.what
    assert "10.0.0.7" not in found.what
    assert "private network" in found.remedy
