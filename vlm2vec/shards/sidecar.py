"""The sidecar beside each shard: its record and what was left out. Written last, it is what commits the shard."""

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
    """An image that rows were left out for.

    Attributes:
        path: of the image.
        problem: a word for it.
        reason: what exactly is wrong.
        row: the first such row.
        place: its file and line, where the number does not say enough.
    """

    path: str
    problem: str
    reason: str
    row: Count
    place: str = ""


@dataclass(frozen=True)
class UnusableRow:
    """A row that no model can be trained on: its key and number, the side, the reason, the place as above."""

    key: str
    row: Count
    side: str
    reason: str
    place: str = ""


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar says of its shard.

    Attributes:
        record: What the manifest says, too.
        unusable_images: The images that rows were left out for.
        unusable_rows: The rows that were left out for what they hold.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    record: ShardRecord
    unusable_images: tuple[UnusableImage, ...]
    unusable_rows: tuple[UnusableRow, ...]

    @staticmethod
    def read(path: Path) -> Sidecar:
        """Reads a sidecar.

        Raises:
            InputError: it cannot be read, is not one of this version, or has changed since it was written.
        """
        content = read_json(path)
        try:
            whole = json_bytes(content) == path.read_bytes()
        except UnicodeEncodeError:  # half a character, which the converter does not write
            whole = False
        fingerprint = content.pop(FINGERPRINT, None)
        if not whole or fingerprint_of(content) != fingerprint:
            raise InputError(f"{path}: the content does not fit the fingerprint; it was edited or damaged")
        left_out = {name: content.pop(name, None) for name in (UNUSABLE_IMAGES, UNUSABLE_ROWS)}
        return parsed(_SIDECAR, json.dumps({"record": content, **left_out}).encode(), str(path))

    def write(self, path: Path) -> None:
        """Writes it, complete or not at all, with a fingerprint: the manifest takes the sidecar's word."""
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
