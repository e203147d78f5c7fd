"""Random access to the samples of a converted data set: one positioned read each, checksum first."""

from __future__ import annotations

import functools
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm2vec.errors import InputError
from vlm2vec.shards.index import Columns, read_index
from vlm2vec.shards.manifest import Manifest
from vlm2vec.shards.schema import (
    IMAGE_MEMBER_PREFIX,
    JSON_MEMBER,
    NEGATIVE,
    POSITIVE,
    QUERY,
    Item,
    Sample,
    sample_key,
)

# A thousand shards must not exhaust a worker's file descriptors (often 1,024 a process).
MAX_OPEN_TARS = 64


class ShardSet:
    """A converted data set, or some of its subsets.

    Can be forked (reads are positioned, so processes may share descriptors) and pickled (a copy opens its own files).

    Attributes:
        subsets: the chosen subsets, in the order asked for, or the manifest's order.
        num_samples: samples by subset; a sample's position runs from 0 and counts the rows that were kept.
        fingerprint: the manifest's: the same fingerprint is the same data.
    """

    def __init__(self, root: Path, manifest: Manifest, subsets: tuple[str, ...]) -> None:
        self._root, self._manifest = root, manifest
        self.subsets = subsets
        self.num_samples = {name: manifest.subsets[name].num_samples for name in subsets}
        self.fingerprint = manifest.fingerprint
        self._columns: dict[str, Columns] = {}
        self._open_tar = _tar_cache()

    @staticmethod
    def open(path: str | Path, subsets: Sequence[str] | None = None) -> ShardSet:
        """Opens a converter's output folder and checks that every file of the chosen subsets is there.

        Raises:
            InputError: no or a damaged manifest, another schema version, an unknown or repeated subset, a tar that
                is missing or has another size than the manifest says, a missing or damaged index.
        """
        root = Path(path)
        manifest = Manifest.read(root)
        names = tuple(manifest.subsets) if subsets is None else tuple(subsets)
        for name in names:
            if name not in manifest.subsets:
                raise InputError(f"{root}: no subset {name}; there are {', '.join(manifest.subsets)}")
            if names.count(name) > 1:
                raise InputError(f"{root}: subset {name} is asked for twice")
        shard_set = ShardSet(root, manifest, names)
        for name in names:
            shard_set._check_tars(name)
            shard_set.columns(name)
        return shard_set

    def columns(self, subset: str) -> Columns:
        """The index columns (`schema.INDEX_SCHEMA`) of a subset, by position; read-only."""
        if subset not in self._columns:
            parts = [
                read_index(self._root / subset / f"{shard.name}.parquet", shard.num_samples)
                for shard in self._manifest.subsets[subset].shards
            ]
            columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for column in columns.values():
                column.setflags(write=False)
            self._columns[subset] = MappingProxyType(columns)
        return self._columns[subset]

    def read(self, subset: str, position: int) -> Sample:
        """Reads the sample at a position of a subset.

        Raises:
            InputError: the shard is damaged there; the message names the shard and the sample's key.
            IndexError: no such position.
        """
        if not 0 <= position < self.num_samples[subset]:
            raise IndexError(f"{subset} has {self.num_samples[subset]} samples, no position {position}")
        columns = self.columns(subset)
        offset, size, row = (int(columns[name][position]) for name in ("offset", "size", "row"))
        key = sample_key(subset, row)
        path = self._tar_path(subset, position)
        try:
            span = os.pread(self._open_tar(path).descriptor, size, offset)
        except OSError as error:
            raise InputError(f"{path}: cannot read sample {key} ({error.strerror})") from error
        if len(span) != size or zlib.crc32(span) != int(columns["crc32"][position]):
            raise InputError(f"{path}: sample {key} is damaged (checksum); convert the shard again")
        try:
            return _parse_sample(span, key, subset, row)
        except (tarfile.TarError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: sample {key} does not fit the shard's index; convert again") from error

    def _tar_path(self, subset: str, position: int) -> Path:
        shards = self._manifest.subsets[subset].shards
        ends = self._shard_ends(subset)
        return self._root / subset / f"{shards[int(np.searchsorted(ends, position, side='right'))].name}.tar"

    def _shard_ends(self, subset: str) -> npt.NDArray[np.int64]:
        """For each shard, the position after its last sample."""
        return np.cumsum([shard.num_samples for shard in self._manifest.subsets[subset].shards])

    def _check_tars(self, subset: str) -> None:
        for shard in self._manifest.subsets[subset].shards:
            path = self._root / subset / f"{shard.name}.tar"
            try:
                size = path.stat().st_size
            except OSError as error:
                raise InputError(f"{path}: missing shard ({error.strerror}); copy it again or convert again") from error
            if size != shard.bytes:
                raise InputError(f"{path}: {size} bytes, the manifest says {shard.bytes}; copy it or convert again")

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self._root, "manifest": self._manifest, "subsets": self.subsets}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["root"], state["manifest"], state["subsets"])  # type: ignore[misc]


class _OpenTar:
    """A descriptor that closes when the last user lets go, so that no read can hit a closed or reused one."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _tar_cache() -> Callable[[Path], _OpenTar]:
    return functools.lru_cache(maxsize=MAX_OPEN_TARS)(_OpenTar)


def _parse_sample(span: bytes, key: str, subset: str, row: int) -> Sample:
    members = _members(span, key)
    record = json.loads(members[JSON_MEMBER])
    images = {name.partition(".")[0]: data for name, data in members.items() if name != JSON_MEMBER}

    def item(side: str) -> Item:
        return Item(record[side]["text"], images.get(IMAGE_MEMBER_PREFIX[side]))

    negative = None if record[NEGATIVE] is None else item(NEGATIVE)
    return Sample(key, subset, row, item(QUERY), item(POSITIVE), negative)


def _members(span: bytes, key: str) -> dict[str, bytes]:
    """The members of one sample, by what follows the key: "json", "qry.jpg", ..."""
    members: dict[str, bytes] = {}
    offset = 0
    while offset < len(span):
        header = tarfile.TarInfo.frombuf(span[offset : offset + tarfile.BLOCKSIZE], "utf-8", "strict")
        start = offset + tarfile.BLOCKSIZE
        prefix, _, suffix = header.name.partition(".")
        if prefix != key:
            raise ValueError(f"{prefix} instead of {key}")
        members[suffix] = span[start : start + header.size]
        offset = start + -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return members
