"""Writes a run's checkpoints: one folder per checkpoint, which appears only when complete."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vlm2vec.errors import InputError
from vlm2vec.files import publish, sync
from vlm2vec.ranks import gather_from_all, on_first_rank
from vlm2vec.training.checkpoints.record import (
    CHECKPOINT_PREFIX,
    ENCODER_FOLDER,
    ENGINE_TAG,
    LATEST,
    RANKS_FOLDER,
    RECORD,
    RunRecord,
    checkpoints_of,
    find_checkpoint,
)

__all__ = ["ENCODER_FOLDER", "ENGINE_TAG", "RECORD", "CheckpointError", "Checkpoints", "RunRecord", "find_checkpoint"]

TEMPORARY_PREFIX = ".tmp-"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; earlier checkpoints are unchanged."""


@dataclass
class _Written:
    """What one rank wrote: file sizes by path in the checkpoint, and why it failed, if it did."""

    files: dict[str, int] = field(default_factory=dict)
    failure: str | None = None


class _FileWriter:
    """Wraps DeepSpeed's writer: a file that cannot be written becomes a value instead of an exception.

    A rank that left `save_checkpoint` with an exception would leave the others waiting in its collectives.
    """

    def __init__(self, folder: Path, inner: Any) -> None:
        self._folder = folder
        self._inner = inner
        self.written = _Written()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def save(self, state_dict: Mapping[str, Any], path: str) -> None:
        """Writes one file and waits until it is on disk."""
        with self.noting_failure():
            torch.save(state_dict, path)
            sync(Path(path))
            self.written.files[str(Path(path).relative_to(self._folder))] = os.path.getsize(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes a folder."""
        with self.noting_failure():
            os.makedirs(path, exist_ok=exist_ok)

    @contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Keeps the first failure as text."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch raises a RuntimeError for a full disk
            first_line = (str(error).splitlines() or [""])[0]
            self.written.failure = self.written.failure or f"{type(error).__name__}: {first_line}"


class Checkpoints:
    """Writes the checkpoints of one run.

    A checkpoint is written under a temporary name, flushed to disk, renamed when every rank is done, and only then
    named in `latest`. A run killed at any moment leaves complete checkpoints and at most one temporary folder.

    Args:
        output_dir: The run's folder, the same on all ranks (on a shared file system if there are several nodes).
        write_encoder: Writes the encoder's small files (configuration, processor, adapter configuration) to a folder;
            called on the first rank.
        record: Returns the record for a step.
        exclude_frozen: Leave out frozen weights: with LoRA, the base model.
        total_limit: Number of checkpoints to keep, the newest ones; None keeps all.
        last_step: Step of the checkpoint that the run was resumed from; 0 if none.
        best: Returns the name of a checkpoint to keep in addition, if any.

    Attributes:
        last_step: Step of the last checkpoint.
        failed_in_a_row: Number of checkpoints since then that could not be written.
    """

    def __init__(
        self,
        output_dir: Path,
        write_encoder: Callable[[Path], None],
        record: Callable[[int], RunRecord],
        exclude_frozen: bool,
        total_limit: int | None = None,
        last_step: int = 0,
        best: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._output_dir = output_dir
        self._write_encoder = write_encoder
        self._record = record
        self._exclude_frozen = exclude_frozen
        self._total_limit = total_limit
        self._best = best
        self.last_step = last_step
        self.failed_in_a_row = 0

    def save(self, engine: Any, step: int, rank_state: Mapping[str, Any] | None = None) -> Path:
        """Writes the checkpoint after `step` steps; all ranks call it.

        Args:
            engine: The DeepSpeed engine.
            step: Steps done.
            rank_state: State of this rank only: tensors, numbers and text.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: On every rank, if one of them could not write. Earlier checkpoints are unchanged.
        """
        final = self._output_dir / f"{CHECKPOINT_PREFIX}{step}"
        temporary = self._output_dir / f"{TEMPORARY_PREFIX}{final.name}"
        writer = _FileWriter(temporary, engine.checkpoint_engine)
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            writer.makedirs(str(temporary / RANKS_FOLDER))
        dist.barrier()
        self._write_engine(engine, writer, temporary)
        writer.save(rank_state or {}, str(temporary / rank_file(dist.get_rank())))
        everyone = gather_from_all(writer.written, _Written)
        failure = on_first_rank(lambda: self._finish(step, temporary, final, everyone), str | None)
        if failure is not None:
            self.failed_in_a_row += 1
            raise CheckpointError(f"{final} could not be written: {failure}")
        self.last_step, self.failed_in_a_row = step, 0
        return final

    def _write_engine(self, engine: Any, writer: _FileWriter, folder: Path) -> None:
        # vlm2vec.export takes the place of DeepSpeed's recovery script.
        replaced = {"checkpoint_engine": writer, "_copy_recovery_script": lambda _path: None}
        before = {name: getattr(engine, name) for name in replaced}
        try:
            for name, value in replaced.items():
                setattr(engine, name, value)
            engine.save_checkpoint(
                str(folder), tag=ENGINE_TAG, save_latest=False, exclude_frozen_parameters=self._exclude_frozen
            )
        finally:
            for name, value in before.items():
                setattr(engine, name, value)

    def _finish(self, step: int, temporary: Path, final: Path, everyone: list[_Written]) -> str | None:
        """On the first rank: writes the small files and the record, renames the folder; returns what went wrong."""
        failures = [f"rank {rank}: {each.failure}" for rank, each in enumerate(everyone) if each.failure]
        if not failures:
            try:
                self._publish(step, temporary, final, everyone)
            except OSError as error:
                failures = [f"rank 0: {type(error).__name__}: {error}"]
        if failures:
            shutil.rmtree(temporary, ignore_errors=True)
            return "; ".join(failures)
        try:
            self._remove_old(final)
        except (OSError, InputError) as error:
            print(f"warning: older checkpoints could not be removed: {error}", flush=True)
        return None

    def _publish(self, step: int, temporary: Path, final: Path, everyone: list[_Written]) -> None:
        for name, size in (item for each in everyone for item in each.files.items()):
            if not (temporary / name).is_file() or (temporary / name).stat().st_size != size:
                raise FileNotFoundError(
                    f"{temporary / name}, which a different rank wrote, is not here: --output_dir must be shared"
                )
        self._write_encoder(temporary / ENCODER_FOLDER)
        for file in (temporary / ENCODER_FOLDER).rglob("*"):
            sync(file)
        files = {str(file.relative_to(temporary)): file.stat().st_size for file in _files(temporary)}
        dataclasses.replace(self._record(step), files=files).write(temporary / RECORD)
        sync(temporary / RECORD)
        for folder in (*(each for each in temporary.rglob("*") if each.is_dir()), temporary):
            sync(folder)
        _remove(final)  # an incomplete checkpoint of that step, which the run was not resumed from
        os.replace(temporary, final)
        pointer = self._output_dir / f"{TEMPORARY_PREFIX}{LATEST}"
        pointer.write_text(final.name + "\n", encoding="utf-8")
        publish(pointer, self._output_dir / LATEST)

    def _remove_old(self, newest: Path) -> None:
        if self._total_limit is None:
            return
        kept = {newest.name, self._best()}
        others = [path for _, path in checkpoints_of(self._output_dir) if path.name not in kept]
        for path in others[self._total_limit - 1 :]:
            _remove(path)


def rank_file(rank: int) -> str:
    """Path in a checkpoint of the state of one rank."""
    return f"{RANKS_FOLDER}/rank-{rank:05d}.pt"


def remove_unfinished(output_dir: Path) -> None:
    """Removes what a killed run was writing or removing."""
    for path in output_dir.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint; renames it first, because a half-removed one must not look like a checkpoint."""
    if checkpoint.exists():
        doomed = checkpoint.with_name(f"{TEMPORARY_PREFIX}removed-{checkpoint.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(checkpoint, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
