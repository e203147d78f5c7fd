"""One of two ranks that agree on their data and on its bad samples, without an engine."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from vlm2vec.batches import GlobalOrder
from vlm2vec.errors import InputError
from vlm2vec.ranks import on_every_rank, on_first_rank, own_rank, refuse_alike, refuse_together, world_size
from vlm2vec.training.bad_samples import BadSamples
from vlm2vec.training.data import compare_data
from vlm2vec.training.preflight.output_folder import check_output_folder
from vlm2vec.training.watch.monitor import Monitor

PLACES = [("A", 3), ("B", 0), ("A", 1)]


class Batches(SimpleNamespace):
    """Keeps what it is asked to replace."""

    def replace(self, damaged: Iterable[tuple[str, int]]) -> None:
        self.replaced = set(damaged)


def refused(text: str) -> None:
    raise InputError(text)


def raised(rank: int, call: Callable[[], object]) -> str | int | None:
    """The first rank's message; the other one's exit code."""
    if rank == 0:
        with pytest.raises(InputError) as refusal:
            call()
        return str(refusal.value)
    with pytest.raises(SystemExit) as end:
        call()
    return end.value.code


def data_of(fingerprint: str) -> Any:
    """All of a `ShardSet` that is compared."""
    return SimpleNamespace(fingerprint=fingerprint)


def agree(rank: int) -> None:
    """All continue, or the first one says why not and the other one ends without a word."""
    assert (own_rank(), world_size()) == (rank, 2)
    assert on_first_rank(lambda: Path(f"{rank}"), Path) == Path("0")
    assert on_every_rank(lambda: rank) == rank
    refuse_together(None)
    refusals: list[tuple[Callable[[], object], str]] = [
        (lambda: on_first_rank(lambda: refused(f"of {rank}")), "of 0"),
        (lambda: on_every_rank(lambda: refused(f"of {rank}")), "rank 0: of 0; rank 1: of 1"),
        (lambda: on_every_rank(lambda: refused("of 1") if rank else None), "rank 1: of 1"),
        (lambda: on_every_rank(lambda: refused("of 1") if rank else None, names_ranks=False), "of 1"),
        (lambda: on_every_rank(lambda: refused(f"of {rank}"), names_ranks=False), "of 0"),
        (lambda: refuse_together("same"), "same"),
        (lambda: refuse_alike("same"), "same"),
    ]
    for refuse, text in refusals:
        error = raised(rank, refuse)
        assert (error == 2) if rank else (error == text), (rank, text, error)


def main(rank: int, folder: Path) -> None:
    """Runs all checks; an assertion that fails ends the rank."""
    agree(rank)
    order = GlobalOrder({"A": 10, "B": 10}, 4, seed=1)
    compare_data(data_of("same"), order)
    for shards, other in [
        (data_of(f"{rank}"), order),
        (data_of("same"), GlobalOrder({"A": 10, "B": 10}, 4, seed=rank)),
    ]:
        with pytest.raises(InputError, match=r"rank 1 and rank 0 hold different shards"):
            compare_data(shards, other)

    check_output_folder(folder / "shared" / "run")
    # The first rank takes its file away last.
    assert rank or list((folder / "shared" / "run").iterdir()) == []
    error = raised(rank, lambda: check_output_folder(folder / f"{rank}", seconds=0))
    listed = f"rank 1: {socket.gethostname()} does not see in --output_dir {folder / '1'} what rank 0 writes there"
    assert error == 2 if rank else listed in str(error)
    (folder / "file").touch()
    error = raised(rank, lambda: check_output_folder(folder / "file" / "run"))
    assert error == 2 if rank else f"--output_dir {folder / 'file' / 'run'}: cannot" in str(error)

    bad = BadSamples(3, [{"subset": "B", "position": 9, "reason": "before"}])
    damage = {PLACES[rank]: f"reason {rank}", **({PLACES[2]: "reason 2"} if rank else {})}
    batches: Any = Batches(damage=damage)
    error = raised(rank, lambda: bad.replace(batches, Monitor(), step=5))
    listed = "4 unreadable samples, --max_bad_samples allows 3: before; reason 2; reason 0; reason 1."
    assert error == 2 if rank else listed in str(error)
    bad = BadSamples(3)
    bad.replace(batches, Monitor(), step=5)
    assert batches.replaced == bad.places == set(PLACES)
    assert [each["reason"] for each in bad.record] == ["reason 2", "reason 0", "reason 1"]
    assert BadSamples(3, bad.record).record == bad.record


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(int(os.environ["RANK"]), Path(sys.argv[1]))
    dist.destroy_process_group()
