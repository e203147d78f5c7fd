"""Agreements among ranks; `tests/distributed/workers/agreement.py` runs them on two ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vlm2vec.ranks
from vlm2vec.errors import InputError
from vlm2vec.ranks import host_ranks, on_every_rank, on_first_rank, own_rank, refuse_alike, refuse_together, world_size
from vlm2vec.ranks.agreement import told


def refused() -> None:
    raise InputError("no shards")


def test_problems_are_reported_with_their_ranks() -> None:
    assert told([None, None]) is None
    assert told(["no shards", "no shards"]) == "no shards"
    assert told([None, "no shards", "other flags", "no shards"]) == "ranks 1, 3: no shards; rank 2: other flags"


def test_one_process_without_a_group_agrees_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with host_ranks():
        assert (own_rank(), world_size()) == (0, 1)
        assert on_first_rank(lambda: Path("a"), Path) == Path("a")
        assert on_first_rank(lambda: None) is None
        assert on_every_rank(lambda: {1}) == {1}
        refuse_together(None)
    for refuse in (
        lambda: on_first_rank(refused),
        lambda: on_every_rank(refused),
        lambda: on_every_rank(refused, names_ranks=False),
        lambda: refuse_together("no shards"),
        lambda: refuse_alike("no shards"),
    ):
        with pytest.raises(InputError, match=r"^no shards$"):
            refuse()


def test_light_programs_read_the_environment_without_torch() -> None:
    code = "import sys, vlm2vec.ranks; assert vlm2vec.ranks.is_first_rank({}) and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(callable(getattr(vlm2vec.ranks, name)) for name in vlm2vec.ranks.__all__ if name.islower())
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = vlm2vec.ranks.absent
