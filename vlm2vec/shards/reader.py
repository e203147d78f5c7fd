"""Random access to the samples of a converted dataset: one positioned read per sample, verified by checksum."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from vlm2vec.errors import InputError
from vlm2vec.shards.columns import Columns, check_columns, entry_at, joined
from vlm2vec.shards.index import parse_index
from vlm2vec.shards.manifest import Manifest, ShardRecord
from vlm2vec.shards.no_manifest import no_manifest
from vlm2vec.shards.parsing import parse_sample
from vlm2vec.shards.remote import Cache, RemoteFiles, is_url
from vlm2vec.shards.schema import MANIFEST_NAME, Sample, fast_hash, sample_key
from vlm2vec.shards.storage import LocalFiles, Storage


class DamagedSampleError(InputError):
    """The bytes of a sample do not match the index; other samples of the shard can still be read."""


class ShardSet:
    """A converted dataset, or some of its subsets. It can be forked and pickled (a copy loads the indexes again).

    Attributes:
        subsets: The chosen subsets, in the order of the request, or in the manifest's order.
        num_samples: Number of samples by subset; a sample's position counts from 0 the rows that were kept.
        fingerprint: The manifest's fingerprint: equal fingerprints mean equal data.
    """

    def __init__(self, storage: Storage, manifest: Manifest, subsets: tuple[str, ...], block_samples: int) -> None:
        self._storage, self._manifest, self._block_samples = storage, manifest, block_samples
        self.subsets = subsets
        self.num_samples = {name: manifest.subsets[name].num_samples for name in subsets}
        self.fingerprint = manifest.fingerprint
        self._loaded: dict[str, _Subset] = {}

    @staticmethod
    def open(
        path: str | Path, subsets: Sequence[str] | None = None, block_samples: int = 1, cache: Cache | None = None
    ) -> ShardSet:
        """Opens a converter's output folder and checks that every file of the chosen subsets is there.

        Args:
            path: The folder, or its URL (http://, s3:// and whatever else fsspec reads).
            subsets: The subsets to open; all if None.
            block_samples: Number of neighbouring samples that are read in one piece from a URL.
            cache: Cache for pieces from a URL; `Cache()` if None.

        Raises:
            InputError: The manifest is missing, damaged or of a different schema version; a subset is unknown or
                repeated; a tar is missing or its size differs from the manifest; an index is missing, damaged or cannot
                belong to its tar.
        """
        storage: Storage = RemoteFiles(str(path), cache or Cache()) if is_url(path) else LocalFiles(Path(path))
        manifest = _manifest(storage)
        names = tuple(manifest.subsets) if subsets is None else tuple(subsets)
        for name in names:
            if name not in manifest.subsets:
                raise InputError(f"{path}: no subset {name}; the subsets are {', '.join(manifest.subsets)}")
            if names.count(name) > 1:
                raise InputError(f"{path}: subset {name} is given twice; name it once")
        shard_set = ShardSet(storage, manifest, names, block_samples)
        for name in names:
            for problem in manifest.row_problems(name):
                raise InputError(f"{storage.place(MANIFEST_NAME)}: {problem}; convert again")
            shard_set._check_tars(name)
            shard_set._subset(name)
        return shard_set

    def columns(self, subset: str) -> Columns:
        """A subset's index in its form in memory (`vlm2vec.shards.columns`), read-only."""
        return self._subset(subset).columns

    def read(self, subset: str, position: int) -> Sample:
        """Reads the sample at a position of a subset.

        Raises:
            DamagedSampleError: The shard is damaged there; the message names the shard and the sample's key.
            IndexError: There is no such position.
        """
        if not 0 <= position < self.num_samples[subset]:
            raise IndexError(f"{subset} has {self.num_samples[subset]} samples, no position {position}")
        loaded = self._subset(subset)
        entry = entry_at(loaded.columns, position)
        offset, size = entry.offset, entry.size
        key = sample_key(subset, entry.row)
        shard = bisect.bisect_right(loaded.ends, position)
        record = self._manifest.subsets[subset].shards[shard]
        tar = f"{subset}/{record.name}.tar"
        path = self._storage.place(tar)
        try:
            span = self._storage.read(tar, offset, size, self._block(loaded, shard, position), record.sha256[:16])
        except OSError as error:
            raise DamagedSampleError(f"{path}: cannot read sample {key} ({error.strerror or error})") from error
        if len(span) != size or fast_hash(span) != entry.checksum:
            raise DamagedSampleError(f"{path}: sample {key} is damaged (checksum); convert the shard again")
        try:
            return parse_sample(span, key, subset, entry)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DamagedSampleError(f"{path}: sample {key} does not match the shard's index; convert again") from error

    def read_many(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Sample | DamagedSampleError]:
        """Reads samples by (subset, position); a damaged sample is replaced by its error."""
        places = list(places)
        readers = min(self._storage.num_readers, len(places))
        if readers <= 1:
            return dict(zip(places, map(self._read_or_error, places), strict=True))
        with ThreadPoolExecutor(readers) as pool:
            return dict(zip(places, pool.map(self._read_or_error, places), strict=True))

    def _read_or_error(self, place: tuple[str, int]) -> Sample | DamagedSampleError:
        try:
            return self.read(*place)
        except DamagedSampleError as error:
            return error

    def _block(self, loaded: _Subset, shard: int, position: int) -> tuple[int, int]:
        """Start and end, in the tar, of the samples that are read together with this one."""
        first = position - position % self._block_samples
        last = min(first + self._block_samples, loaded.ends[shard]) - 1
        first = max(first, loaded.ends[shard - 1] if shard else 0)
        return int(loaded.columns["offset"][first]), int(loaded.columns["offset"][last] + loaded.columns["size"][last])

    def _subset(self, name: str) -> _Subset:
        """A subset's index, loaded at first use, so that a copy in a worker loads only what it reads."""
        if name not in self._loaded:
            shards = self._manifest.subsets[name].shards
            ends = tuple(itertools.accumulate(shard.num_samples for shard in shards))
            try:
                columns = joined([self._index(name, shard) for shard in shards])
            except (
                MemoryError
            ) as error:  # a remote tar's size is not compared with the manifest, so the numbers may be wrong
                manifest = self._storage.place(MANIFEST_NAME)
                raise InputError(
                    f"{manifest}: the index of {ends[-1]:,} samples of {name} exceeds the memory"
                ) from error
            pa.default_memory_pool().release_unused()  # otherwise Arrow keeps as much memory as the subset took
            for values in columns.values():
                values.setflags(write=False)
            self._loaded[name] = _Subset(MappingProxyType(columns), ends)
        return self._loaded[name]

    def _index(self, subset: str, shard: ShardRecord) -> dict[str, npt.NDArray[Any]]:
        name = f"{subset}/{shard.name}.parquet"
        path = self._storage.place(name)
        try:
            content = self._storage.content(name)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{path}: cannot read the shard's index ({reason}); convert again") from error
        columns = parse_index(content, path, shard)
        check_columns(columns, path, shard)
        return columns

    def _check_tars(self, subset: str) -> None:
        for shard in self._manifest.subsets[subset].shards:
            name = f"{subset}/{shard.name}.tar"
            path = self._storage.place(name)
            try:
                size = self._storage.size(name)
            except OSError as error:
                raise InputError(f"{path}: missing shard ({error.strerror}); copy it again or convert again") from error
            if size is not None and size != shard.bytes:
                raise InputError(
                    f"{path}: has {size} bytes, the manifest states {shard.bytes}; copy it or convert again"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": {}}


@dataclass(frozen=True)
class _Subset:
    """A subset's index columns, and the position after the last sample of each tar."""

    columns: Columns
    ends: tuple[int, ...]


def _manifest(storage: Storage) -> Manifest:
    path = storage.place(MANIFEST_NAME)
    try:
        content = storage.content(MANIFEST_NAME)
    except OSError as error:
        raise no_manifest(path, error, isinstance(storage, RemoteFiles)) from error
    return Manifest.parse(content, path)
