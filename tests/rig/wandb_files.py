"""What wandb's offline mode has written: a log of blocks, as LevelDB's, of protocol buffers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HEADER, _BLOCK = 7, 32 * 1024
_WHOLE, _LAST = 1, 4


def wandb_history(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of an offline run; of an image or a histogram, one of its values."""
    from wandb.proto import wandb_internal_pb2

    for data in _records(next(folder.glob("run-*.wandb")).read_bytes()):
        record: Any = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            yield {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}


def _records(data: bytes) -> Iterator[bytes]:
    """Records lie in pieces, each with checksum, length and kind before it, and none over the end of a block."""
    place, pieces = _HEADER, b""
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        place += _HEADER
        pieces += data[place : place + length]
        place += length
        if kind in (_WHOLE, _LAST):
            yield pieces
            pieces = b""
