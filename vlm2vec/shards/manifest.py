"""The manifest over all shards, and the sidecar beside each: what was converted from what, with checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlm2vec.errors import InputError
from vlm2vec.files import committed
from vlm2vec.shards.schema import MANIFEST_NAME, SCHEMA_VERSION, SUBSET_NAME, shard_name


@dataclass(frozen=True)
class ShardRecord:
    """One shard, as its sidecar and the manifest describe it.

    Attributes:
        name: stem of the tar, its index and its sidecar, which lie in the subset's folder.
        bytes: size of the tar.
        sha256: of the tar.
        index_sha256: of the index.
        num_samples: samples in it.
        rows: first row and end of the range of source rows that it covers, counted over the subset's tables.
        skipped: rows of the range that are not in it, by reason.
        unique_images: different pictures among its samples.
        image_bytes: bytes of all its pictures.
        duplicate_image_bytes: bytes that pictures take which an earlier sample of the shard holds already.
    """

    name: str
    bytes: int
    sha256: str
    index_sha256: str
    num_samples: int
    rows: tuple[int, int]
    skipped: dict[str, int]
    unique_images: int
    image_bytes: int
    duplicate_image_bytes: int


@dataclass(frozen=True)
class SourceRecord:
    """One source table: size, checksum, rows."""

    file: str
    sha256: str
    bytes: int
    rows: int


@dataclass(frozen=True)
class SubsetRecord:
    """One subset: its source tables and its shards, both in order of their rows."""

    sources: tuple[SourceRecord, ...]
    shards: tuple[ShardRecord, ...]

    @property
    def num_samples(self) -> int:
        """Samples in all of the subset's shards."""
        return sum(shard.num_samples for shard in self.shards)

    @property
    def skipped(self) -> dict[str, int]:
        """Rows left out, by reason."""
        totals: dict[str, int] = {}
        for shard in self.shards:
            for reason, count in shard.skipped.items():
                totals[reason] = totals.get(reason, 0) + count
        return totals


@dataclass(frozen=True)
class Manifest:
    """All subsets, and the options that shaped their content."""

    options: Mapping[str, Any]
    subsets: Mapping[str, SubsetRecord]
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        object.__setattr__(self, "fingerprint", hashlib.sha256(canonical.encode()).hexdigest())

    def _content(self) -> dict[str, Any]:
        """What the file holds besides the fingerprint; the sums are there for people and for other tools."""
        return {
            "schema_version": SCHEMA_VERSION,
            "options": dict(self.options),
            "num_samples": sum(subset.num_samples for subset in self.subsets.values()),
            "subsets": {
                name: {"num_samples": subset.num_samples, "skipped": subset.skipped, **asdict(subset)}
                for name, subset in self.subsets.items()
            },
        }

    def write(self, root: Path) -> None:
        """Writes `root`/manifest.json, complete or not at all."""
        write_json(root / MANIFEST_NAME, {"fingerprint": self.fingerprint, **self._content()})

    @staticmethod
    def read(root: Path) -> Manifest:
        """Reads `root`/manifest.json.

        Raises:
            InputError: none there (not converted, or not to the end), not JSON, another schema version, fields that
                are missing or wrong, or a content that does not fit the fingerprint.
        """
        path = root / MANIFEST_NAME
        try:
            content = path.read_bytes()
        except OSError as error:
            raise no_manifest(str(path), error) from error
        return Manifest.parse(content, str(path))

    @staticmethod
    def parse(data: bytes, path: str) -> Manifest:
        """The manifest in a file's content; `path` is what messages call it.

        Raises:
            InputError: as `read`.
        """
        content = _parse_json(data, path)
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(f"{path}: schema version {version!r}, this code reads {SCHEMA_VERSION}; convert again")
        try:
            manifest = Manifest(
                options=dict(content["options"]),
                subsets={name: _subset(name, record) for name, record in content["subsets"].items()},
            )
            fingerprint = content["fingerprint"]
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise InputError(f"{path}: damaged manifest ({type(error).__name__}: {error}); convert again") from error
        if manifest.fingerprint != fingerprint:
            raise InputError(f"{path}: the content does not fit the fingerprint; it was edited or damaged")
        return manifest


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes readable JSON, complete or not at all; the same content gives the same bytes."""
    with committed(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def no_manifest(path: str, error: OSError) -> InputError:
    """What to say when the file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: no manifest; is the conversion (data_prep.convert) complete?")
    return InputError(f"{path}: cannot read the manifest ({error.strerror or error})")


def _parse_json(data: bytes, path: str) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot read the manifest ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a manifest")
    return content


def _subset(name: str, record: Mapping[str, Any]) -> SubsetRecord:
    """Names become paths, so they are checked: none may lead out of the folder."""
    if not SUBSET_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a subset's name")
    return SubsetRecord(
        sources=tuple(SourceRecord(**source) for source in record["sources"]),
        shards=tuple(_shard(shard_name(name, number), shard) for number, shard in enumerate(record["shards"])),
    )


def _shard(name: str, record: Mapping[str, Any]) -> ShardRecord:
    if record["name"] != name:
        raise ValueError(f"shard {record['name']!r} in the place of {name}")
    first, end = record["rows"]
    return ShardRecord(**{**record, "rows": (int(first), int(end))})
