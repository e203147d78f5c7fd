"""Writes and converts a small MMEB-train with one subset, A."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.conversion import DEFAULT_TOLERANCE, Tolerance, convert
from data_prep.conversion_plan import DEFAULT_OPTIONS
from data_prep.source import SourceData
from vlm2vec.shards.manifest import Manifest

Row = dict[str, str]

TABLE = "A/original-00000-of-00001.parquet"


def image_bytes(shade: int, format_name: str = "PNG") -> bytes:
    """An image file of 7 x 9 pixels in one shade."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((9, 7, 3), shade, np.uint8)).save(buffer, format_name)
    return buffer.getvalue()


def row(number: int, **changes: str) -> Row:
    """A row of the training table; `changes` replace columns."""
    plain = {
        "qry": f"<|image_1|>\nquestion {number}\n",
        "qry_image_path": f"images/A/Train/{number % 3}.png",
        "pos_text": f"answer {number}",
        "pos_image_path": "",
    }
    return {**plain, **changes}


def write_rows(root: Path, rows: Sequence[Row], name: str = TABLE) -> None:
    """Writes rows as a Parquet table below the dataset's root."""
    (root / name).parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), root / name, row_group_size=4)


def make_dataset(root: Path) -> Path:
    """Ten rows, three images."""
    (root / "images" / "A" / "Train").mkdir(parents=True)
    for shade in range(3):
        (root / "images" / "A" / "Train" / f"{shade}.png").write_bytes(image_bytes(shade))
    write_rows(root, [row(number) for number in range(10)])
    return root


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder: its relative path and its bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def converted(
    dataset: Path,
    output: Path,
    subsets: Sequence[str] = ("A",),
    allow_links: bool = False,
    num_workers: int = 0,
    tolerance: Tolerance = DEFAULT_TOLERANCE,
    **options: Any,
) -> Manifest:
    """Converts, and returns the manifest; `options` are fields of `Options`."""
    source = SourceData(dataset, dataset, list(subsets), allow_links)
    manifest = convert(source, output, replace(DEFAULT_OPTIONS, **options), tolerance, num_workers).manifest
    assert manifest is not None
    return manifest
