"""Writes small datasets in MMEB-eval's layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm2vec.evaluation.data.datasets import EvalRows, read_dataset
from vlm2vec.evaluation.data.items import ItemTable, ItemTableBuilder

Row = dict[str, Any]


def row(query: str, candidates: Sequence[str], query_image: str = "", images: Sequence[str] | None = None) -> Row:
    """A row with text candidates, the truth first."""
    return {
        "qry_text": query,
        "qry_img_path": query_image,
        "tgt_text": list(candidates),
        "tgt_img_path": list(images) if images is not None else [""] * len(candidates),
    }


def write_dataset(folder: Path, name: str, rows: list[Row], split: str = "test") -> Path:
    """Writes `<folder>/<name>/<split>-00000-of-00001.parquet`."""
    path = folder / name / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_image(path: Path, colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (8, 6)) -> Path:
    """Writes a plain image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def read(*paths: Path) -> tuple[list[EvalRows], ItemTable]:
    """Reads files, each as a dataset named by its folder."""
    builder = ItemTableBuilder()
    rows = [read_dataset(path.parent.name, [path], builder) for path in paths]
    return rows, builder.build()


def pairs(items: ItemTable, indices: Iterable[int]) -> list[tuple[str, str]]:
    """(text, image path) of items."""
    return [(items.text(index), items.image(index)) for index in indices]
