"""Random access to the samples of a converted data set: one positioned read each, checksum first."""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

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
BLOCK_BYTES = 512  # a tar's unit


class DamagedSampleError(InputError):
    """A sample whose bytes are not what the index says; the samples around it can be read."""


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
        self._loaded: dict[str, _Subset] = {}
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
            shard_set._subset(name)
        return shard_set

    def columns(self, subset: str) -> Columns:
        """The index columns (`schema.INDEX_SCHEMA`) of a subset, by position; read-only."""
        return self._subset(subset).columns

    def read(self, subset: str, position: int) -> Sample:
        """Reads the sample at a position of a subset.

        Raises:
            DamagedSampleError: the shard is damaged there; the message names the shard and the sample's key.
            IndexError: no such position.
        """
        if not 0 <= position < self.num_samples[subset]:
            raise IndexError(f"{subset} has {self.num_samples[subset]} samples, no position {position}")
        loaded = self._subset(subset)
        offset, size, crc32, row = (int(loaded.columns[name][position]) for name in ("offset", "size", "crc32", "row"))
        key = sample_key(subset, row)
        path = loaded.tars[bisect.bisect_right(loaded.ends, position)]
        try:
            span = os.pread(self._open_tar(path).descriptor, size, offset)
        except OSError as error:
            raise DamagedSampleError(f"{path}: cannot read sample {key} ({error.strerror})") from error
        if len(span) != size or zlib.crc32(span) != crc32:
            raise DamagedSampleError(f"{path}: sample {key} is damaged (checksum); convert the shard again")
        try:
            return _parse_sample(span, key, subset, row)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedSampleError(f"{path}: sample {key} does not fit the shard's index; convert again") from error

    def read_many(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Sample | DamagedSampleError]:
        """Reads samples by (subset, position); in the place of a damaged one stands what is wrong with it."""
        samples: dict[tuple[str, int], Sample | DamagedSampleError] = {}
        for place in places:
            try:
                samples[place] = self.read(*place)
            except DamagedSampleError as error:
                samples[place] = error
        return samples

    def _subset(self, name: str) -> _Subset:
        """A subset's index, loaded at first use: a copy in a worker loads what it reads."""
        if name not in self._loaded:
            folder, shards = self._root / name, self._manifest.subsets[name].shards
            parts = [
                read_index(folder / f"{shard.name}.parquet", shard.num_samples, shard.index_sha256) for shard in shards
            ]
            columns = {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}
            for column in columns.values():
                column.setflags(write=False)
            self._loaded[name] = _Subset(
                columns=MappingProxyType(columns),
                tars=tuple(str(folder / f"{shard.name}.tar") for shard in shards),
                ends=tuple(itertools.accumulate(shard.num_samples for shard in shards)),
            )
        return self._loaded[name]

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


@dataclass(frozen=True)
class _Subset:
    """A subset's index columns, its tars, and for each tar the position after its last sample."""

    columns: Columns
    tars: tuple[str, ...]
    ends: tuple[int, ...]


class _OpenTar:
    """A descriptor that closes when the last user lets go, so that no read can hit a closed or reused one."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _tar_cache() -> Callable[[str], _OpenTar]:
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
    """The members of one sample, by what follows the key: "json", "qry.jpg", ...

    Two fields of each USTAR header are all it takes, the checksum having vouched for the bytes: `tarfile` parses all
    sixteen and costs more than the read, the checksum and the JSON together.
    """
    members: dict[str, bytes] = {}
    offset = 0
    while offset < len(span):
        prefix, _, suffix = span[offset : offset + 100].rstrip(b"\0").decode("ascii").partition(".")
        if prefix != key:
            raise ValueError(f"{prefix} instead of {key}")
        size = int(span[offset + 124 : offset + 135], 8)
        start = offset + BLOCK_BYTES
        members[suffix] = span[start : start + size]
        offset = start + -(-size // BLOCK_BYTES) * BLOCK_BYTES
    return members
