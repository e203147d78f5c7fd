"""Writes the miniature to disk in the layout of MMEB-train and MMEB-eval after unpacking."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from data_prep.mini.drawing import Digits, DrawnImage
from data_prep.mini.prompts import NUM_PARAPHRASES
from data_prep.mini.tasks import TASKS, VARIANTS, Draft, Entry, Source, Variant
from vlm2vec.mmeb import EvalDataset, TrainSubset

EVAL_ROWS = 200
MIN_ROWS = 12  # minimum per dataset, at any scale; two more than there are paraphrases
GALLERY_SIZE = {"train": 24, "test": 3}  # handwritings of a digit among targets and candidates
JPEG_QUALITY = 90
SPLITS = ("original", "diverse_instruction")

# As in a few of the real datasets: one prompt for all candidates, stored as a string beside a list of images.
STRING_TARGET_TEXT = ("SameDigit-Tilted",)


class ImageWriter:
    """Writes each image once, under its own name."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix
        self._written: set[str] = set()
        folder.mkdir(parents=True)

    def path_of(self, image: DrawnImage | None) -> str:
        """Writes the image if necessary; returns its path for a table, "" for no image."""
        if image is None:
            return ""
        if image.name not in self._written:
            (self._folder / image.name).write_bytes(_encoded(image))
            self._written.add(image.name)
        return f"{self._prefix}/{image.name}"


def _encoded(image: DrawnImage) -> bytes:
    buffer, pixels = io.BytesIO(), image.draw()
    if image.name.endswith(".jpg"):
        Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        is_grey = (pixels == pixels[..., :1]).all()  # as in MMEB, not every image is RGB
        Image.fromarray(pixels[..., 0] if is_grey else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_train_subset(root: Path, subset: TrainSubset, scale: float, seed: int) -> int:
    """Writes one training subset: the tables of both splits, the legacy table that real folders still contain, images.

    Returns:
        The number of rows.
    """
    task = TASKS[subset.name]
    source = Source("train", _generator(seed, "train", subset.name), Digits("train"), GALLERY_SIZE["train"])
    drafts = [task.draw(source, 1) for _ in range(max(MIN_ROWS, round(scale * subset.rows)))]
    images = ImageWriter(root / "images" / subset.name / "Train", f"images/{subset.name}/Train")
    columns = {
        "qry_image_path": [images.path_of(draft.image) for draft in drafts],
        **_side("pos", [draft.target for draft in drafts], images),
    }
    if task.has_negatives:
        columns |= _side("neg", [draft.distractors[0] for draft in drafts], images)
    questions = {
        "original": [task.prompt.original(draft.question) for draft in drafts],
        "diverse_instruction": [
            task.prompt.paraphrase(draft.question, row % NUM_PARAPHRASES) for row, draft in enumerate(drafts)
        ],
    }
    for split, file_split in (*zip(SPLITS, SPLITS, strict=True), ("original", "train")):
        table = pa.table({"qry": questions[split], **columns})
        _write_table(table, root / subset.name / f"{file_split}-00000-of-00001.parquet")
    return len(drafts)


def _side(name: str, entries: Sequence[Entry], images: ImageWriter) -> dict[str, list[str]]:
    return {
        f"{name}_text": [entry.text for entry in entries],
        f"{name}_image_path": [images.path_of(entry.image) for entry in entries],
    }


def write_eval_dataset(root: Path, dataset: EvalDataset, scale: float, seed: int) -> int:
    """Writes one evaluation dataset from held-out images; candidate 0 is the ground truth.

    Returns:
        The number of rows.
    """
    variant = VARIANTS.get(dataset.name) or Variant(str(dataset.train_subset))
    task = TASKS[variant.task]
    source = Source(
        "test",
        _generator(seed, "test", dataset.name),
        Digits("test"),
        GALLERY_SIZE["test"],
        variant.look,
        variant.mirrored,
        variant.columns,
    )
    num_rows = max(MIN_ROWS, round(scale * EVAL_ROWS))
    drafts = [task.draw(source, dataset.num_candidates - 1) for _ in range(num_rows)]
    images = ImageWriter(root / "images" / dataset.name, dataset.name)
    candidates = [(draft.target, *draft.distractors) for draft in drafts]
    texts: list[str] | list[list[str]] = [[entry.text for entry in row] for row in candidates]
    if dataset.name in STRING_TARGET_TEXT:
        texts = [row[0].text for row in candidates]
    table = pa.table(
        {
            "qry_text": [_eval_question(variant, draft, row) for row, draft in enumerate(drafts)],
            "qry_img_path": [images.path_of(draft.image) for draft in drafts],
            "tgt_text": texts,
            "tgt_img_path": [[images.path_of(entry.image) for entry in row] for row in candidates],
        }
    )
    _write_table(table, root / dataset.name / "test-00000-of-00001.parquet")
    return num_rows


def _eval_question(variant: Variant, draft: Draft, row: int) -> str:
    prompt = TASKS[variant.task].prompt
    if variant.reworded:
        return prompt.paraphrase(draft.question, row % NUM_PARAPHRASES)
    return prompt.original(draft.question)


def write_readme(root: Path, title: str, names: Iterable[str], splits: Iterable[str]) -> None:
    """Writes the data card whose YAML head lets `datasets.load_dataset(root, name, split=...)` find the tables."""
    configs = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": f"{name}/{split}-*"} for split in splits],
        }
        for name in names
    ]
    head = yaml.safe_dump({"configs": configs}, sort_keys=False)
    body = (
        f"# {title}\n\n"
        "A miniature of MMEB made of scikit-learn's handwritten digits and photographs and of scikit-image's\n"
        "images, written by `python -m data_prep.mini_mmeb`. The layout is that of the real datasets.\n"
    )
    (root / "README.md").write_text(f"---\n{head}---\n\n{body}", encoding="utf-8")


def _write_table(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _generator(seed: int, *names: str) -> np.random.Generator:
    """A separate random generator for each folder, so that its content does not depend on the others."""
    return np.random.default_rng([seed, zlib.crc32("/".join(names).encode())])
