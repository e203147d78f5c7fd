"""Checks one shard: its files against the manifest's record, and each sample against its row of the index."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.sniff import sniff_header
from vlm2vec.errors import InputError
from vlm2vec.images.decode import check_image
from vlm2vec.shards.index import Columns, read_index
from vlm2vec.shards.manifest import ShardRecord
from vlm2vec.shards.schema import (
    IMAGE_MEMBER_PREFIX,
    INDEX_SCHEMA,
    JSON_MEMBER,
    NEGATIVE,
    SIDES,
    content_hash,
    fast_hash,
    sample_key,
)
from vlm2vec.shards.sidecar import FINGERPRINT, UNUSABLE_IMAGES, UNUSABLE_ROWS

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardCheck:
    """One shard to check; `decode` also decodes its pictures."""

    root: Path
    subset: str
    number: int
    record: ShardRecord
    decode: bool

    def path(self, suffix: str) -> Path:
        """One of the shard's three files."""
        return self.root / self.subset / f"{self.record.name}{suffix}"


def broken_parts(check: ShardCheck) -> list[str]:
    """What is wrong with a shard, a line each; nothing if it is whole."""
    problems = [*_sidecar_problems(check)]
    columns: dict[str, Any] | None = None
    try:
        record = check.record
        columns = read_index(check.path(".parquet"), record.num_samples, record.index_sha256, INDEX_SCHEMA.names)
    except InputError as error:
        problems.append(str(error))
    try:
        problems += _tar_problems(check, columns)
    except OSError as error:
        problems.append(f"{check.path('.tar')}: cannot read it ({error.strerror})")
    return problems


def _sidecar_problems(check: ShardCheck) -> Iterator[str]:
    path = check.path(".json")
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        sidecar.pop(UNUSABLE_IMAGES)
        for name in (UNUSABLE_ROWS, FINGERPRINT):  # earlier versions had none
            sidecar.pop(name, None)
        same = sidecar == json.loads(json.dumps(asdict(check.record)))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        yield f"{path}: cannot read it ({type(error).__name__})"
        return
    if not same:
        yield f"{path}: differs from the manifest"


def _tar_problems(check: ShardCheck, columns: Columns | None) -> Iterator[str]:
    """Reads the tar once: checksum of the whole, and sample by sample as the index cuts it."""
    path, record = check.path(".tar"), check.record
    size = path.stat().st_size
    if size != record.bytes:
        yield f"{path}: {size} bytes, the manifest says {record.bytes}"
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        if columns is not None:
            yield from _sample_problems(check, columns, file, digest)
        rest_is_zero = True
        while block := file.read(_READ_BYTES):
            digest.update(block)
            rest_is_zero = rest_is_zero and not block.strip(b"\0")
    if digest.hexdigest() != record.sha256:
        yield f"{path}: its content has changed (sha256 differs from the manifest)"
    if columns is not None and not rest_is_zero:
        yield f"{path}: there is something behind the last sample"


def _sample_problems(check: ShardCheck, columns: Columns, file: BinaryIO, digest: Any) -> Iterator[str]:
    expected_offset = 0
    for values in zip(*(column.tolist() for column in columns.values()), strict=True):
        entry = dict(zip(columns, values, strict=True))
        key = sample_key(check.subset, entry["row"])
        if entry["offset"] != expected_offset:
            yield f"{check.path('.parquet')}: sample {key} is said to begin at {entry['offset']}, not {expected_offset}"
            return  # nothing behind it can be compared
        if not 0 < entry["size"] <= check.record.bytes - expected_offset:
            yield f"{check.path('.parquet')}: sample {key} is said to have {entry['size']} bytes"
            return
        span = file.read(entry["size"])
        expected_offset += entry["size"]
        digest.update(span)
        problem = _sample_problem(check, key, entry, span)
        if problem:
            yield f"{check.path('.tar')}: sample {key}: {problem}"


def _sample_problem(check: ShardCheck, key: str, entry: Mapping[str, Any], span: bytes) -> str | None:
    if fast_hash(span) != entry["checksum"]:
        return "damaged (checksum)"
    try:
        members = dict(_members(span))
        if any(not name.startswith(f"{key}.") for name in members):
            return f"has members of another key ({', '.join(members)})"
        described = _described(members, key, entry["row"], check)
    except InputError as error:
        return str(error)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, tarfile.TarError) as error:
        return f"not a sample ({type(error).__name__}: {error})"
    wrong = [name for name, value in described.items() if entry[name] != value]
    return f"differs from the index in {', '.join(wrong)}" if wrong else None


def _members(span: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member, by the standard library's reading of a header, which checks its checksum."""
    offset = 0
    while offset < len(span):
        info = tarfile.TarInfo.frombuf(span[offset : offset + tarfile.BLOCKSIZE], "ascii", "strict")
        if not info.isreg():
            raise ValueError(f"{info.name} is no plain file")
        start = offset + tarfile.BLOCKSIZE
        yield info.name, span[start : start + info.size]
        offset = start + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _described(members: Mapping[str, bytes], key: str, row: int, check: ShardCheck) -> dict[str, int | bool]:
    """What the index should say about the sample, computed from the sample."""
    record = json.loads(members[f"{key}.{JSON_MEMBER}"])
    if (record["subset"], record["row"]) != (check.subset, row):
        raise ValueError(f"is row {record['row']} of {record['subset']}")
    described: dict[str, int | bool] = {"has_negative": record[NEGATIVE] is not None}
    for side in SIDES:
        prefix = f"{key}.{IMAGE_MEMBER_PREFIX[side]}."
        found: list[tuple[str, bytes | None]] = [item for item in members.items() if item[0].startswith(prefix)]
        (name, image), *further = found or [("", None)]
        if further:
            raise ValueError(f"two pictures of one side, {name} and {further[0][0]}")
        text = "" if record[side] is None else record[side]["text"]
        header = None
        if image is not None:
            header = (check_image if check.decode else sniff_header)(image, name)
            stated = record[side]["image"]
            if name != f"{prefix}{header.extension}" or stated["width"] != header.width:
                raise ValueError(f"{name} is a {header.extension} of {header.width} x {header.height} pixels")
        described |= {
            f"{side}_text_length": len(text),
            f"{side}_width": header.width if header else 0,
            f"{side}_height": header.height if header else 0,
            f"{side}_hash": 0 if record[side] is None else content_hash(text, image),
            f"{side}_image_hash": 0 if image is None else fast_hash(image),
        }
    return described
