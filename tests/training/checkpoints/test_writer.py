"""Checkpoints without ranks: their content, failures, and that reading them runs no code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from vlm2vec.errors import InputError
from vlm2vec.ranks import prepare_environment
from vlm2vec.training import loop
from vlm2vec.training.checkpoints.record import LATEST, RECORD, RunRecord, find_checkpoint, read_whole
from vlm2vec.training.checkpoints.restore import load_engine
from vlm2vec.training.checkpoints.universal import convert
from vlm2vec.training.checkpoints.writer import CheckpointError, Checkpoints, remove_unfinished
from vlm2vec.training.watch.monitor import Monitor

STATE_FILE = "mp_rank_00_model_states.pt"


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]  # torch leaves it out of __all__
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class OneFileEngine:
    """Writes and reads as DeepSpeed's does: through its checkpoint engine, and without `weights_only`."""

    def __init__(self) -> None:
        self.checkpoint_engine: Any = None
        self._copy_recovery_script = None

    def save_checkpoint(self, folder: str, tag: str, **_: Any) -> None:
        self.checkpoint_engine.makedirs(f"{folder}/{tag}", exist_ok=True)
        self.checkpoint_engine.save({"weights": torch.ones(3)}, f"{folder}/{tag}/{STATE_FILE}")

    def load_checkpoint(self, folder: str, tag: str, **_: Any) -> tuple[str, Any]:
        path = f"{folder}/{tag}/{STATE_FILE}"
        return path, torch.load(path, weights_only=False)


def record(step: int) -> RunRecord:
    return RunRecord(step, 1, 2, {"lora": False}, {}, {})


def write_encoder(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("one_rank")
def test_the_newest_are_kept_and_the_best(tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoints = Checkpoints(run, write_encoder, record, False, total_limit=2, best=lambda: "checkpoint-1")
    engine = OneFileEngine()
    for step in (1, 2, 3, 10):
        checkpoints.save(engine, step)
        assert find_checkpoint(run).name == f"checkpoint-{step}"
    assert names(run) == ["checkpoint-1", "checkpoint-10", "checkpoint-3", LATEST]
    assert set(read_whole(run / "checkpoint-10").files) == {
        *(f"engine/{STATE_FILE}", "encoder/config.json", "ranks/rank-00000.pt"),
    }


@pytest.mark.usefixtures("one_rank")
def test_only_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run", write_encoder, record, False, total_limit=1)
    for step in (1, 2):
        checkpoints.save(OneFileEngine(), step)
    assert names(tmp_path / "run") == ["checkpoint-2", LATEST]


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("what", ["state", "encoder"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    checkpoints = Checkpoints(run, write_encoder, record, False, total_limit=1)
    checkpoints.save(OneFileEngine(), 1)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if what == "state":
        monkeypatch.setattr(torch, "save", full)
    else:
        monkeypatch.setattr(checkpoints, "_write_encoder", full)
    with pytest.raises(CheckpointError, match=r"checkpoint-2 could not be written: rank 0: .*No space left"):
        checkpoints.save(OneFileEngine(), 2)
    assert names(run) == ["checkpoint-1", LATEST]
    assert read_whole(find_checkpoint(run)).step == 1
    assert checkpoints.last_step == 1


@pytest.mark.usefixtures("one_rank")
def test_failures_in_a_row_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = SimpleNamespace(
        model=SimpleNamespace(engine=SimpleNamespace(device=torch.device("cpu"), checkpoint_engine=None)),
        meter=SimpleNamespace(state_dict=dict),
        monitor=Monitor(),
        checkpoints=Checkpoints(tmp_path / "run", write_encoder, record, False),
    )

    def failing(self: Checkpoints, engine: Any, writer: Any, folder: Path) -> None:
        writer.written.failure = "OSError: not shared"

    def save(step: int) -> Path | None:
        return loop.save(run, step, run_goes_on=True)

    for fails, steps in ((True, range(1, loop.MOST_FAILED_SAVES)), (False, [5]), (True, range(6, 8))):
        monkeypatch.setattr(Checkpoints, "_write_engine", failing if fails else lambda *_: None)
        for step in steps:
            assert (save(step) is None) == fails
    with pytest.raises(
        CheckpointError, match=r"not shared; 3 checkpoints in a row have failed.*\(last valid .*step 5\)"
    ):
        save(8)


@pytest.mark.usefixtures("one_rank")
def test_an_incomplete_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoint-4").mkdir(parents=True)
    (run / "checkpoint-4" / "torn").write_text("x")
    (run / ".tmp-checkpoint-9").mkdir()
    (run / ".tmp-latest").write_text("checkpoint-9\n")
    remove_unfinished(run)
    Checkpoints(run, write_encoder, record, False).save(OneFileEngine(), 4)
    assert names(run) == ["checkpoint-4", LATEST]
    assert names(run / "checkpoint-4") == ["encoder", "engine", "ranks", RECORD]


@pytest.mark.parametrize("reader", ["load", "convert"])
def test_a_checkpoint_cannot_run_code(tmp_path: Path, reader: str) -> None:
    """DeepSpeed's files are pickles, and it opens them in the way that runs what they say."""
    marker = tmp_path / "was run"

    class Command:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch '{marker}'",)

    engine = tmp_path / "engine"
    engine.mkdir()
    for name in (STATE_FILE, "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save({"module": Command(), "optimizer_state_dict": Command()}, engine / name)
    torch.load(engine / STATE_FILE, weights_only=False)
    assert marker.exists()  # the file is dangerous
    marker.unlink()
    prepare_environment()
    if reader == "load":
        with pytest.raises(InputError, match=f"{engine}: cannot be read as ZeRO state"):
            load_engine(tmp_path, OneFileEngine(), excludes_frozen=False)
    else:
        with pytest.raises(Exception, match="Weights only load failed"):
            convert(engine, tmp_path / "universal", 3)
    assert not marker.exists()
    shutil.rmtree(engine)
