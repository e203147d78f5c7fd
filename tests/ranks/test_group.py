"""Joining and leaving a process group, and not disturbing an existing one."""

from __future__ import annotations

import os

import pytest
import torch.distributed as dist

from vlm2vec.errors import InputError
from vlm2vec.ranks import LAUNCHER_VARIABLES, free_port, host_ranks, own_rank, prepare_environment, world_size


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of rank 0 of two."""
    environment = dict(zip(LAUNCHER_VARIABLES, ("0", "0", "2", "127.0.0.1", str(free_port())), strict=True))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("The server socket has failed: EADDRINUSE\nstack", "port {MASTER_PORT} is in use by another program"),
        ("connect failed\nstack", "rank 0 cannot be reached at {MASTER_ADDR}:{MASTER_PORT}: connect failed"),
    ],
)
def test_ranks_of_an_evaluation_that_cannot_meet_are_one_line(
    reason: str, text: str, job: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise dist.DistNetworkError(reason)

    monkeypatch.setattr(dist, "init_process_group", fail)
    with pytest.raises(InputError) as caught, host_ranks():
        pass
    assert str(caught.value).startswith(text.format_map(job))
    assert "\n" not in str(caught.value)


def test_a_launchers_only_rank_joins_nothing(job: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with host_ranks():
        assert not dist.is_initialized()
        assert (own_rank(), world_size()) == (0, 1)


def test_a_start_without_a_launcher_is_a_run_of_one_rank(job: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name)
    prepare_environment()
    assert [os.environ[name] for name in LAUNCHER_VARIABLES[:4]] == ["0", "0", "1", "127.0.0.1"]
    assert 0 < int(os.environ["MASTER_PORT"]) < 65536
