"""The sidecar of each shard: its record and what was left out. It is written last and commits the shard."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import Count, parsed, read_json
from vlm2vec.shards.manifest import ShardRecord, fingerprint_of, json_bytes, write_json

UNUSABLE_IMAGES, UNUSABLE_ROWS = "unusable_images", "unusable_rows"
FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class UnusableImage:
    """An unusable image, for which rows were left out.

    Attributes:
        path: Path of the image.
        problem: Kind of problem, in a word.
        reason: What exactly is wrong.
        row: The first row that uses it.
        place: File and line of that row, if its number does not identify it.
    """

    path: str
    problem: str
    reason: str
    row: Count
    place: str = ""


@dataclass(frozen=True)
class UnusableRow:
    """A row that no model can be trained on: its key and number, the side, the reason, and the place as above."""

    key: str
    row: Count
    side: str
    reason: str
    place: str = ""


@dataclass(frozen=True)
class Sidecar:
    """Content of a sidecar.

    Attributes:
        record: The shard's record, which the manifest contains too.
        unusable_images: Unusable images, for which rows were left out.
        unusable_rows: Rows that were left out because of their content.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    record: ShardRecord
    unusable_images: tuple[UnusableImage, ...]
    unusable_rows: tuple[UnusableRow, ...]

    @staticmethod
    def read(path: Path) -> Sidecar:
        """Reads a sidecar.

        Raises:
            InputError: It cannot be read, is of a different version, or was changed after it was written.
        """
        content = read_json(path)
        try:
            whole = json_bytes(content) == path.read_bytes()
        except UnicodeEncodeError:  # a lone surrogate, which the converter does not write
            whole = False
        fingerprint = content.pop(FINGERPRINT, None)
        if not whole or fingerprint_of(content) != fingerprint:
            raise InputError(f"{path}: the content does not match the fingerprint; it was edited or damaged")
        left_out = {name: content.pop(name, None) for name in (UNUSABLE_IMAGES, UNUSABLE_ROWS)}
        return parsed(_SIDECAR, json.dumps({"record": content, **left_out}).encode(), str(path))

    def write(self, path: Path) -> None:
        """Writes the sidecar with a fingerprint, because the manifest relies on it; it appears only when complete."""
        left_out = {
            UNUSABLE_IMAGES: [_noted(image) for image in self.unusable_images],
            UNUSABLE_ROWS: [_noted(row) for row in self.unusable_rows],
        }
        content = {**self.record.content(), **left_out}
        write_json(path, {**content, FINGERPRINT: fingerprint_of(content)})


def _noted(left_out: UnusableImage | UnusableRow) -> dict[str, Any]:
    content = asdict(left_out)
    return content if left_out.place else {name: value for name, value in content.items() if name != "place"}


_SIDECAR = TypeAdapter(Sidecar)
