"""Checkpoints of a run: a folder a step, complete or not there at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from vlm2vec.errors import InputError

ENGINE_TAG = "engine"
ENCODER_FOLDER = "encoder"
RECORD = "run.json"
LATEST = "latest"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RunRecord:
    """What a checkpoint says of its run.

    Attributes:
        step: Steps done.
        num_ranks: Ranks that wrote it.
        zero_stage: Their ZeRO stage.
        arguments: The resolved arguments.
        versions: Of the packages that matter.
        data: Fingerprint of the shards and digest of the order.
        temperature: State of a learned temperature.
    """

    step: int
    num_ranks: int
    zero_stage: int
    arguments: Mapping[str, Any]
    versions: Mapping[str, str]
    data: Mapping[str, str]
    temperature: Mapping[str, float] | None = None

    def write(self, path: Path) -> None:
        """Writes the record as JSON."""
        path.write_text(
            json.dumps({"schema_version": SCHEMA_VERSION, **self.__dict__}, indent=2, sort_keys=True) + "\n",
            encoding="utf-8",
        )

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Reads a record.

        Raises:
            InputError: No record, or one of another program or version.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values.pop("schema_version")
            record = cls(**values)
        except FileNotFoundError:
            raise InputError(f"{path.parent}: not a checkpoint of this program (no {path.name} in it)") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path}: not the record of a checkpoint ({error})") from error
        if version != SCHEMA_VERSION:
            raise InputError(f"{path}: written in format {version}, this program reads {SCHEMA_VERSION}")
        return record


class Checkpoints:
    """Writes the checkpoints of one run.

    A checkpoint is written under a temporary name, renamed when every rank is done, and only then named in `latest`;
    a run killed at any moment leaves whole checkpoints and at most one temporary folder.

    Args:
        output_dir: The run's folder.
        write_encoder: Writes the encoder's small files (configuration, processor, adapter configuration) to a folder;
            called on the first rank.
        record: Makes the record for a step.
        exclude_frozen: Leave out weights that are not trained: with LoRA, the base model.
    """

    def __init__(
        self,
        output_dir: Path,
        write_encoder: Callable[[Path], None],
        record: Callable[[int], RunRecord],
        exclude_frozen: bool,
    ) -> None:
        self._output_dir = output_dir
        self._write_encoder = write_encoder
        self._record = record
        self._exclude_frozen = exclude_frozen

    def save(self, engine: Any, step: int) -> Path:
        """Writes the checkpoint after `step` steps; all ranks call it.

        Returns:
            Its folder.
        """
        name = f"checkpoint-{step}"
        final, temporary = self._output_dir / name, self._output_dir / f".tmp-{name}"
        is_first = dist.get_rank() == 0
        if is_first:
            shutil.rmtree(temporary, ignore_errors=True)
        dist.barrier()
        engine.save_checkpoint(
            str(temporary), tag=ENGINE_TAG, save_latest=False, exclude_frozen_parameters=self._exclude_frozen
        )
        dist.barrier()
        if is_first:
            self._write_encoder(temporary / ENCODER_FOLDER)
            self._record(step).write(temporary / RECORD)
            os.replace(temporary, final)
            pointer = self._output_dir / f".tmp-{LATEST}"
            pointer.write_text(name + "\n", encoding="utf-8")
            os.replace(pointer, self._output_dir / LATEST)
        dist.barrier()
        return final


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: itself, or the latest one of a run's folder.

    Raises:
        InputError: The path is neither.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected a checkpoint or a run's folder")
    if (path / RECORD).is_file():
        return path
    try:
        name = (path / LATEST).read_text(encoding="utf-8").strip()
    except OSError:
        raise InputError(f"{path}: neither a checkpoint (no {RECORD}) nor a run's folder (no {LATEST})") from None
    checkpoint = path / Path(name).name
    if not (checkpoint / RECORD).is_file():
        raise InputError(f"{path / LATEST} names '{name}', which is not a checkpoint here")
    return checkpoint
