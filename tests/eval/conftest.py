"""A folder in MMEB-eval's layout made by hand, and an encoder whose vectors a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


class TableEncoder:
    """Stands for `VLM2Vec`: looks vectors up by (text, image file name) and remembers what it was asked."""

    def __init__(self, vectors: dict[tuple[str, str], Sequence[float]]) -> None:
        self.vectors = vectors
        self.calls: list[list[tuple[str, str]]] = []

    def encode(
        self, texts: Sequence[str], images: Sequence[str | None], show_progress: bool | None = None
    ) -> np.ndarray:
        keys = [(text, Path(image).name if image else "") for text, image in zip(texts, images, strict=True)]
        self.calls.append(keys)
        return np.asarray([self.vectors[key] for key in keys], dtype=np.float32)


Row = dict[str, Any]


@pytest.fixture
def write_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Writes `<tmp>/data/<name>/test-00000-of-00001.parquet`, and each named image under `<tmp>/images`."""

    def write(name: str, rows: list[Row], split: str = "test") -> Path:
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
        return folder / f"{split}-00000-of-00001.parquet"

    return write


@pytest.fixture
def write_image(tmp_path: Path) -> Callable[[str], Path]:
    def write(name: str) -> Path:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (200, 30, 30)).save(path)
        return path

    return write


def row(query: str, candidates: Sequence[str], query_image: str = "", images: Sequence[str] | None = None) -> Row:
    """A row with text candidates, the truth first."""
    return {
        "qry_text": query,
        "qry_img_path": query_image,
        "tgt_text": list(candidates),
        "tgt_img_path": list(images) if images is not None else [""] * len(candidates),
    }
