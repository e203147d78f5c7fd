"""Selects the worst misses of a run, with thumbnails of their images for the report's page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from eval.results import read_predictions
from vlm2vec.errors import InputError
from vlm2vec.images.decode import open_image
from vlm2vec.images.folder import ImageFolder
from vlm2vec.item_rules import IMAGE_TAG

# Longer side of a thumbnail in pixels: about 8 kB each.
_THUMBNAIL = 200
_MAX_TEXT = 280


@dataclass(frozen=True)
class Side:
    """A query or candidate of a miss: its text, its image's path, and the image as a data URI ("" = none)."""

    title: str
    text: str
    path: str
    image: str
    score: float | None


@dataclass(frozen=True)
class Miss:
    """A miss: the truth's rank, the number of candidates, and the query, the truth and the chosen candidate."""

    row: int
    rank: int
    num_candidates: int
    tied: bool
    sides: tuple[Side, ...]


class Gallery:
    """Finds misses of one run and makes their thumbnails.

    Args:
        folder: The run's folder.
        summary: The content of its `scores.json`.
        image_dir: The folder of the images; None: the one from which they were scored. Missing images are left out.
        allow_links: Whether to follow links that lead out of the image folder.
    """

    def __init__(
        self, folder: Path, summary: Mapping[str, Any], image_dir: Path | None, allow_links: bool = False
    ) -> None:
        self._folder = folder
        self._allow_links = allow_links
        self._summary = summary
        self._image_dir = image_dir
        self._thumbnails: dict[tuple[Path, str], str] = {}
        self.num_missing = 0

    def worst(self, dataset: str, count: int) -> list[Miss]:
        """The rows of a dataset whose truth ranks lowest, then by how far the chosen candidate is ahead.

        Raises:
            InputError: The run has no predictions, or they do not match its scores.
        """
        score = self._summary["datasets"][dataset]
        table = read_predictions(self._folder, dataset, score)
        ranks = table["rank"].to_numpy()
        top_scores = np.asarray(table["top_score"].combine_chunks().flatten()).reshape(len(ranks), -1)
        ahead = top_scores[:, 0] - table["truth_score"].to_numpy()
        order = np.lexsort((np.arange(len(ranks)), -ahead, -ranks))
        images = self._image_dir or Path(score.get("image_dir") or self._summary.get("image_dir", ""))
        chosen = _different(table, [int(row) for row in order if ranks[row] > 1], count)
        return [self._miss(table.slice(row, 1).to_pylist()[0], images) for row in chosen]

    def _miss(self, values: dict[str, Any], images: Path) -> Miss:
        sides = (
            self._side("query", values["query_text"], values["query_image"], None, images),
            self._side("chosen", values["top_text"][0], values["top_image"][0], values["top_score"][0], images),
            self._side("truth", values["truth_text"], values["truth_image"], values["truth_score"], images),
        )
        return Miss(values["row"], values["rank"], values["num_candidates"], values["tied"], sides)

    def _side(self, title: str, text: str, image: str, score: float | None, images: Path) -> Side:
        text = " ".join(IMAGE_TAG.sub("", text).split())
        shown = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
        return Side(title, shown, image, self._thumbnail(images, image) if image else "", score)

    def _thumbnail(self, images: Path, image: str) -> str:
        if (images, image) not in self._thumbnails:
            if not images.is_dir():
                self.num_missing += 1
                return ""
            try:
                folder = ImageFolder(images, self._allow_links, num_frames=1)  # a clip's first frame
                data = folder.read(folder.files(image)[0])
                self._thumbnails[images, image] = _data_uri(open_image(data, image))
            except InputError:  # moved or changed since the run; the text is shown anyway
                self.num_missing += 1
                return ""
        return self._thumbnails[images, image]


def _different(table: pa.Table, rows: Sequence[int], count: int) -> list[int]:
    """Chooses `count` rows, preferring rows whose query and truth do not occur in a row chosen before.

    Args:
        table: The predictions.
        rows: The rows of the misses, the worst first.
        count: Maximum number of rows.
    """
    sides = [
        list(
            zip(*(table[f"{side}_{part}"].take(pa.array(rows, pa.int64())).to_pylist() for part in parts), strict=True)
        )
        for side, parts in (("query", ("image", "text")), ("truth", ("image", "text")))
    ]
    shown: set[tuple[str, str]] = set()
    chosen: list[int] = []
    left: list[int] = []
    for row, *items in zip(rows, *sides, strict=True):
        # Items with images are compared by their images, others by their texts.
        seen = {(image, "" if image else text) for image, text in items if image or text}
        if len(chosen) < count and not seen & shown:
            chosen.append(row)
            shown |= seen
        else:
            left.append(row)
    return [*chosen, *left[: count - len(chosen)]]


def _data_uri(image: Image.Image) -> str:
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def galleries(gallery: Gallery, datasets: Sequence[str], count: int) -> dict[str, list[Miss]]:
    """The worst misses of every dataset that has misses."""
    found = {name: gallery.worst(name, count) for name in datasets}
    return {name: misses for name, misses in found.items() if misses}
