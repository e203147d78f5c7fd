"""The manifest of all shards: what was converted from which sources, with checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from vlm2vec.errors import InputError
from vlm2vec.files import committed
from vlm2vec.formats.json_files import Count, Sha256, parsed
from vlm2vec.shards.no_manifest import no_manifest
from vlm2vec.shards.schema import MANIFEST_NAME, PLAIN, SCHEMA_VERSIONS, SUBSET_NAME, Version, shard_name

# Fewest bytes of a sample: a tar header and one block of JSON.
_MIN_SAMPLE_BYTES = 1024


@dataclass(frozen=True)
class ShardRecord:
    """One shard, as its sidecar and the manifest describe it.

    Attributes:
        name: Stem of the names of the tar, its index and its sidecar, in the subset's folder.
        bytes: Size of the tar in bytes.
        sha256: SHA-256 of the tar.
        index_sha256: SHA-256 of the index.
        num_samples: Number of samples.
        rows: First row and end of the range of source rows that it covers, counted over the subset's tables.
        skipped: Number of rows of the range that are not in it, by reason.
        unique_images: Number of distinct images among its samples.
        image_bytes: Bytes of all its images.
        duplicate_image_bytes: Bytes of images that repeat an earlier image of the shard.
        index_version: Version of its index, see `schema.INDEX_SCHEMAS`; not stored if it is `PLAIN`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    bytes: Count
    sha256: Sha256
    index_sha256: Sha256
    num_samples: Count
    rows: tuple[Count, Count]
    skipped: dict[str, Count]
    unique_images: Count
    image_bytes: Count
    duplicate_image_bytes: Count
    index_version: Version = PLAIN

    def content(self) -> dict[str, Any]:
        """Content for sidecar and manifest."""
        content = asdict(self)
        if self.index_version == PLAIN:
            del content["index_version"]
        return content

    def __post_init__(self) -> None:
        if self.rows[0] > self.rows[1]:
            raise ValueError(f"the range of rows ends before it starts ({self.rows[0]} to {self.rows[1]})")
        if self.num_samples * _MIN_SAMPLE_BYTES > self.bytes:
            raise ValueError(f"{self.num_samples} samples do not fit into {self.bytes} bytes")

    @property
    def accounts_for_its_rows(self) -> bool:
        """Whether every row of the range is either a sample or counted as skipped."""
        return self.rows[1] - self.rows[0] == self.num_samples + sum(self.skipped.values())


@dataclass(frozen=True)
class SourceRecord:
    """One source table: size, checksum, rows."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    file: str
    sha256: Sha256
    bytes: Count
    rows: Count


@dataclass(frozen=True)
class SubsetRecord:
    """One subset: its source tables and its shards, both in the order of their rows."""

    sources: tuple[SourceRecord, ...]
    shards: tuple[ShardRecord, ...]

    @property
    def num_samples(self) -> int:
        """Number of samples in the subset's shards."""
        return sum(shard.num_samples for shard in self.shards)

    @property
    def skipped(self) -> dict[str, int]:
        """Number of rows left out, by reason."""
        totals: dict[str, int] = {}
        for shard in self.shards:
            for reason, count in shard.skipped.items():
                totals[reason] = totals.get(reason, 0) + count
        return totals

    def row_problems(self, limit: object) -> list[str]:
        """Finds shards that leave a gap in the sources or do not account for all of their rows.

        Args:
            limit: Number of source rows that were converted, from the first; all rows if this is not a number.
        """
        problems, expected = [], 0
        for shard in self.shards:
            first, end = shard.rows
            if first != expected:
                problems.append(f"{shard.name} begins at row {first}, not at {expected}")
            if not shard.accounts_for_its_rows:
                problems.append(f"{shard.name} does not account for each of its {end - first} rows")
            expected = end
        total = sum(source.rows for source in self.sources)
        wanted = min(total, limit) if isinstance(limit, int) else total
        if self.sources and expected != wanted:
            problems.append(f"the shards end at row {expected}, the sources at {wanted}")
        return problems


@dataclass(frozen=True)
class _SubsetFile:
    """A subset in the manifest file."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    num_samples: Count
    skipped: dict[str, Count]
    sources: tuple[SourceRecord, ...]
    shards: tuple[ShardRecord, ...]

    def record(self, name: str) -> SubsetRecord:
        """Checks names, which become paths: none may lead out of the folder."""
        if not SUBSET_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a subset's name")
        for number, shard in enumerate(self.shards):
            if shard.name != shard_name(name, number):
                raise ValueError(f"shard {shard.name!r} in the place of {shard_name(name, number)}")
        record = SubsetRecord(self.sources, self.shards)
        if (record.num_samples, record.skipped) != (self.num_samples, self.skipped):
            raise ValueError(f"subset {name}: num_samples or skipped is not the sum over its shards")
        return record


@dataclass(frozen=True)
class _ManifestFile:
    """The manifest file."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    fingerprint: Sha256
    schema_version: int
    options: dict[str, Any]
    num_samples: Count
    subsets: dict[str, _SubsetFile]


_MANIFEST_FILE = TypeAdapter(_ManifestFile)


@dataclass(frozen=True)
class Manifest:
    """All subsets, and the options that decided their content."""

    options: Mapping[str, Any]
    subsets: Mapping[str, SubsetRecord]
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", fingerprint_of(self._content()))

    @property
    def schema_version(self) -> Version:
        """Highest version of its indexes: a reader of the manifest must be able to read them all."""
        return max((shard.index_version for subset in self.subsets.values() for shard in subset.shards), default=PLAIN)

    def row_problems(self, name: str) -> list[str]:
        """What is wrong with how a subset's shards cover its sources; see `SubsetRecord.row_problems`."""
        problems = self.subsets[name].row_problems(self.options.get("num_sample_per_subset"))
        return [f"{name}: {problem}" for problem in problems]

    def _content(self) -> dict[str, Any]:
        """Content of the file without the fingerprint; the sums are for readers and other tools."""
        return {
            "schema_version": self.schema_version,
            "options": dict(self.options),
            "num_samples": sum(subset.num_samples for subset in self.subsets.values()),
            "subsets": {
                name: {
                    "num_samples": subset.num_samples,
                    "skipped": subset.skipped,
                    "sources": [asdict(source) for source in subset.sources],
                    "shards": [shard.content() for shard in subset.shards],
                }
                for name, subset in self.subsets.items()
            },
        }

    def write(self, root: Path) -> None:
        """Writes `root`/manifest.json, which appears only when complete."""
        write_json(root / MANIFEST_NAME, {"fingerprint": self.fingerprint, **self._content()})

    @staticmethod
    def read(root: Path) -> Manifest:
        """Reads `root`/manifest.json.

        Raises:
            InputError: The file is missing (not converted, or not completely), is not JSON, is of a different schema
                version, has missing or wrong fields, or does not match its fingerprint.
        """
        path = root / MANIFEST_NAME
        try:
            content = path.read_bytes()
        except OSError as error:
            raise no_manifest(str(path), error) from error
        return Manifest.parse(content, str(path))

    @staticmethod
    def parse(data: bytes, path: str) -> Manifest:
        """Parses a manifest file's content; `path` is its name in messages.

        Raises:
            InputError: See `read`.
        """
        version = _schema_version(data, path)
        if version not in SCHEMA_VERSIONS or isinstance(version, (bool, float)):
            known = " and ".join(map(str, SCHEMA_VERSIONS))
            raise InputError(f"{path}: has schema version {version!r}, this code reads {known}; convert again")
        file = parsed(_MANIFEST_FILE, data, path)
        try:
            manifest = Manifest(file.options, {name: subset.record(name) for name, subset in file.subsets.items()})
        except ValueError as error:
            raise InputError(f"{path}: damaged manifest ({error}); convert again") from error
        if not manifest.subsets:
            raise InputError(f"{path}: lists no subsets; convert again")
        if manifest.fingerprint != file.fingerprint:
            raise InputError(f"{path}: the content does not match the fingerprint; it was edited or damaged")
        return manifest


def fingerprint_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of JSON content, independent of its layout in a file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes indented JSON; the file appears only when complete, and the same content gives the same bytes."""
    with committed(path) as temporary:
        temporary.write_bytes(json_bytes(content))


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """The bytes that `write_json` writes."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _schema_version(data: bytes, path: str) -> Any:
    """The schema version, read before parsing, because files of other versions need not match the schema."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot read the manifest ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a manifest")
    return content.get("schema_version")
