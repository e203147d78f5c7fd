"""The record of a checkpoint (run.json): reads and writes it, and finds a run's complete checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter

from vlm2vec import __version__
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import Count, parsed, read_json, shorten

ENGINE_TAG = "engine"
ENCODER_FOLDER = "encoder"
RANKS_FOLDER = "ranks"
RECORD = "run.json"
LATEST = "latest"
CHECKPOINT_PREFIX = "checkpoint-"
SCHEMA_VERSION = 1
RECORDED_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "webdataset")


@dataclass(frozen=True)
class RunRecord:
    """What a checkpoint records about its run.

    Attributes:
        step: Steps done; together with the order's digest, the position in the data.
        num_ranks: Number of ranks that wrote it.
        zero_stage: Their ZeRO stage.
        arguments: The resolved arguments.
        versions: Versions of the packages in `RECORDED_PACKAGES` and of this one.
        data: Fingerprint of the shards, digest of the order and, with a teacher's sidecar, its fingerprint.
        temperature: State of the learned temperature, or of one per group of rows.
        bad_samples: Samples replaced so far, as `BadSamples.record` returns them.
        keep_graphs: Number of graphs that a step kept: `--keep_graphs auto` measures it, and the order in which
            gradients are summed depends on it.
        files: Size in bytes of every other file of the checkpoint, by its path in it. The record is written last, so
            a checkpoint that holds these files is complete.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: Count
    num_ranks: Annotated[int, Field(ge=1, le=1 << 20)]
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    arguments: Mapping[str, Any]
    versions: Mapping[str, str]
    data: Mapping[str, str]
    temperature: Mapping[str, FiniteFloat] | None = None
    bad_samples: Sequence[Mapping[str, Any]] = ()
    keep_graphs: Count | None = None
    files: Mapping[str, Count] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for sample in self.bad_samples:
            kinds = {name: type(value) for name, value in sample.items()}
            if kinds != {"subset": str, "position": int, "reason": str} or sample["position"] < 0:
                raise ValueError("a bad sample has not the fields subset, position and reason")
        for name in self.files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
                raise ValueError(f"the file {name!r} is not one of the checkpoint's")

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
            InputError: There is no record, it is of a different program or version, or a field is invalid.
        """
        if not path.exists():
            raise InputError(f"{path.parent}: not a checkpoint of this program (no {path.name} in it)")
        values = read_json(path)
        if "schema_version" not in values:
            raise InputError(f"{path}: not the record of a checkpoint (no schema_version in it)")
        version = values.pop("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(f"{path}: written in format {shorten(version)}, this program reads {SCHEMA_VERSION}")
        return parsed(_RECORD, json.dumps(values).encode(), str(path))


_RECORD = TypeAdapter(RunRecord)


def read_whole(checkpoint: Path) -> RunRecord:
    """Reads the record of a checkpoint and checks that all its files are there.

    Raises:
        InputError: It is no checkpoint, or an incomplete one; the message names the file.
    """
    record = RunRecord.read(checkpoint / RECORD)
    if not record.files:
        raise InputError(f"{checkpoint / RECORD}: does not list the checkpoint's files, so it cannot be resumed")
    for name, size in record.files.items():
        file = checkpoint / name
        try:
            found = file.stat().st_size
        except OSError as error:
            raise InputError(f"{file}: missing ({error.strerror}); the checkpoint is incomplete") from error
        if found != size:
            raise InputError(f"{file}: has {found} bytes, {size} were written; the checkpoint is incomplete")
    return record


def checkpoints_of(output_dir: Path) -> Iterator[tuple[int, Path]]:
    """Steps and folders of a run's checkpoints, complete or not, newest first."""
    steps = [
        (int(step), path)
        for path in output_dir.glob(f"{CHECKPOINT_PREFIX}*")
        if (step := path.name.removeprefix(CHECKPOINT_PREFIX)).isdecimal() and path.is_dir()
    ]
    yield from sorted(steps, reverse=True)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at a path: the path itself, or the latest checkpoint of a run's folder.

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


def versions() -> dict[str, str]:
    """Versions of this package and of the packages in `RECORDED_PACKAGES`."""
    return {"vlm2vec": __version__, **{name: version(name) for name in RECORDED_PACKAGES}}
