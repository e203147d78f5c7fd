"""Writes small retrieval datasets in BEIR's layout."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Rows = Sequence[Mapping[str, Any]]


def png(number: int, size: tuple[int, int] = (24, 32)) -> bytes:
    """An image's bytes; different numbers give different images."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 37 % 256, number * 101 % 256, number * 11 % 256)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet_collection(folder: Path, queries: Rows, corpus: Rows, qrels: Rows, split: str = "test") -> Path:
    """Writes a collection as on the hub: one folder per part, with the split's parquet files."""
    for part, rows in (("queries", queries), ("corpus", corpus), ("qrels", qrels)):
        path = folder / part / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return folder


def write_beir_collection(folder: Path, queries: Rows, corpus: Rows, qrels: Rows, split: str = "test") -> Path:
    """Writes a collection in BEIR's layout: JSON lines, and tab-separated judgements named after the split."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for part, rows in (("queries", queries), ("corpus", corpus)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    judged = ["\t".join(str(row[name]) for name in ("query-id", "corpus-id", "score")) for row in qrels]
    (folder / f"qrels/{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged, ""]), encoding="utf-8")
    return folder
