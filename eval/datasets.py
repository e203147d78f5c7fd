"""Reads datasets in MMEB-eval's layout into one table of unique items and, per dataset, indices into it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download

from vlm2vec.errors import InputError

COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
# Rows turned into Python objects at a time: a thousand candidates each would otherwise fill the memory.
_READ_ROWS = 64


@dataclass
class ItemTable:
    """The unique items (text, image path) over all datasets of a run, in order of first use.

    An image path is relative to the image folder, as the parquet gives it; "" = no image.
    """

    texts: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    first_uses: list[str] = field(default_factory=list)
    """Where each item first stands, "<file> row <n>": what error messages name."""
    _indices: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, text: str, image: str, use: str) -> int:
        """Returns the item's index, the same for every equal item."""
        index = self._indices.setdefault((text, image), len(self.texts))
        if index == len(self.texts):
            self.texts.append(text)
            self.images.append(image)
            self.first_uses.append(use)
        return index


@dataclass(frozen=True)
class EvalRows:
    """One dataset: for each row the query's index and its candidates' indices, the truth first."""

    name: str
    queries: npt.NDArray[np.int64]
    candidates: tuple[npt.NDArray[np.int64], ...]

    def __len__(self) -> int:
        return len(self.candidates)


def resolve_datasets(name: str, split: str) -> Path:
    """A local folder as it is; otherwise a Hugging Face dataset, of which the split's parquet files are downloaded.

    Raises:
        InputError: neither a folder nor a dataset that can be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"--dataset_name {name}: no such folder")
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=f"*/{split}-*.parquet"))
    except Exception as error:  # offline, unknown, gated, malformed: the hub's client has a type for each
        reason = " ".join(str(error).split())
        raise InputError(f"--dataset_name {name}: no such folder, nor a dataset on the hub ({reason})") from error


def find_datasets(folder: Path, split: str) -> dict[str, list[Path]]:
    """Names and parquet parts of the datasets in `folder`: every sub-folder with `<split>-<i>-of-<n>.parquet`.

    Raises:
        InputError: no dataset at all, or one of which parts are missing (a partial download).
    """
    pattern = re.compile(rf"{re.escape(split)}-\d+-of-\d+\.parquet")
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            continue
        parts = sorted(path for path in entry.iterdir() if pattern.fullmatch(path.name))
        if not parts:
            continue
        total = int(parts[0].stem.rsplit("-", 1)[1])
        if [path.stem for path in parts] != [f"{split}-{part:05d}-of-{total:05d}" for part in range(total)]:
            raise InputError(
                f"{entry}: the parts of split {split} are not 0 to {total - 1} of {total}; download the rest"
            )
        found[entry.name] = parts
    if not found:
        raise InputError(f"{folder}: no dataset with a {split}-*.parquet file; is it a folder in MMEB-eval's layout?")
    return found


def read_dataset(name: str, parts: Sequence[Path], items: ItemTable) -> EvalRows:
    """Reads one dataset and adds its items to `items`.

    `tgt_text` is a list aligned with `tgt_img_path`, or one string that stands for all of its images (some datasets
    of MMEB-eval); null means absent, as "" does.

    Raises:
        InputError: a file that is not parquet, a missing column, no row, a row without candidates, lists of
            different lengths, an entry that is not text.
    """
    queries: list[int] = []
    candidates: list[npt.NDArray[np.int64]] = []
    for path in parts:
        for row, values in enumerate(_read_rows(path)):
            use = f"{path} row {row}"
            pairs = [(values["qry_text"], values["qry_img_path"]), *_candidates(values, use)]
            indices = [items.add(_text(text, use), _text(image, use), use) for text, image in pairs]
            queries.append(indices[0])
            candidates.append(np.asarray(indices[1:], dtype=np.int64))
    if not queries:
        raise InputError(f"{parts[0]}: no rows")
    return EvalRows(name, np.asarray(queries, dtype=np.int64), tuple(candidates))


def check_images(items: ItemTable, image_dir: Path) -> None:
    """Checks that every image path is a file inside `image_dir` (links followed), before any model is loaded.

    Raises:
        InputError: names the first bad path, the row that uses it, and how many are missing in all.
    """
    first_uses: dict[str, str] = {}
    for image, use in zip(items.images, items.first_uses, strict=True):
        if image:
            first_uses.setdefault(image, use)
    missing = []
    root = image_dir.resolve()
    for image, use in first_uses.items():
        parts = PurePosixPath(image).parts
        if "\0" in image or ".." in parts or not (image_dir / image).resolve().is_relative_to(root):
            raise InputError(f"{use}: image path {image!r} leads out of --image_dir {image_dir}")
        if not (image_dir / image).is_file():
            missing.append(image)
    if missing:
        count = f" (and {len(missing) - 1} more of {len(first_uses)})" if len(missing) > 1 else ""
        raise InputError(f"{first_uses[missing[0]]}: no image {image_dir / missing[0]}{count}; check --image_dir")


def _read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            absent = [column for column in COLUMNS if column not in file.schema_arrow.names]
            if absent:
                raise InputError(f"{path}: no column {absent[0]}; an eval file has {', '.join(COLUMNS)}")
            for batch in file.iter_batches(batch_size=_READ_ROWS, columns=list(COLUMNS)):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise InputError(f"{path}: cannot read it as parquet ({' '.join(str(error).split())})") from error


def _candidates(values: Mapping[str, Any], use: str) -> list[tuple[Any, Any]]:
    texts, images = values["tgt_text"], values["tgt_img_path"]
    if isinstance(texts, list) and images in (None, ""):
        images = [""] * len(texts)
    if not isinstance(images, list):
        images = [images]
    if not isinstance(texts, list):
        texts = [texts] * len(images)
    if len(texts) != len(images):
        raise InputError(f"{use}: {len(texts)} entries in tgt_text but {len(images)} in tgt_img_path")
    if not texts:
        raise InputError(f"{use}: no candidates")
    return list(zip(texts, images, strict=True))


def _text(value: Any, use: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{use}: {value!r} is not text")
    return value
