"""The report of a conversion: counts of rows, images and repeats, and what is missing or unreadable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.images import MISSING
from data_prep.shard_tasks import ShardResult
from vlm2vec.shards.index import read_index
from vlm2vec.shards.manifest import write_json
from vlm2vec.shards.schema import POSITIVE, QUERY, SIDES

REPORT_NAME = "report.json"
# Number of bad images that a subset's report names; the shards' sidecars name all of them.
FIRST_NAMES = 10


@dataclass(frozen=True)
class SubsetReport:
    """One subset, or all of them.

    Attributes:
        rows: Number of source rows that were to be converted.
        samples: Number of these rows that are in the shards.
        skipped: Number of rows left out, by reason.
        shards: Number of tars.
        bytes: Size of the tars in bytes.
        images: Number of images in the samples.
        image_bytes: Size of these images in bytes.
        distinct_images: Number of distinct images, by their bytes.
        distinct_pairs: Number of distinct (query, positive) pairs, by text and image bytes.
        missing_images: Number of distinct paths at which there is no image.
        unreadable_images: Number of distinct paths of images that cannot be used (damaged, or not allowed).
        unusable_rows: Number of rows that no model can be trained on (wrong tags, too thin an image, no content).
        first_missing, first_unreadable: The first of these images, with the reason.
        first_unusable: The first of these rows: key, side and reason.
        unused_columns: Columns of the tables that nothing reads.
    """

    rows: int
    samples: int
    skipped: dict[str, int]
    shards: int
    bytes: int
    images: int
    image_bytes: int
    distinct_images: int
    distinct_pairs: int
    missing_images: int
    unreadable_images: int
    unusable_rows: int
    first_missing: list[str]
    first_unreadable: list[str]
    first_unusable: list[str]
    unused_columns: list[str]

    @property
    def unusable_images(self) -> int:
        """Number of missing or unreadable images, because of which rows were left out."""
        return self.missing_images + self.unreadable_images

    @property
    def unusable_share(self) -> float:
        """Share of the rows that no model can be trained on."""
        return self.unusable_rows / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class ConversionReport:
    """A whole conversion: every subset, and the total, in which an image that several subsets share counts once."""

    subsets: Mapping[str, SubsetReport]
    total: SubsetReport

    def beyond(self, max_unusable: float) -> dict[str, SubsetReport]:
        """The subsets in which more than this share of the rows cannot be trained on."""
        return {name: subset for name, subset in self.subsets.items() if subset.unusable_share > max_unusable}

    def write(self, output_dir: Path) -> None:
        """Writes report.json; the same conversion gives the same bytes."""
        subsets = {name: asdict(subset) for name, subset in self.subsets.items()}
        write_json(output_dir / REPORT_NAME, {"total": asdict(self.total), "subsets": subsets})


def make_report(
    output_dir: Path, shards: Mapping[str, Sequence[ShardResult]], unused_columns: Mapping[str, list[str]]
) -> ConversionReport:
    """Collects the report from the shards' sidecars and indexes."""
    hashes = {name: _hashes(output_dir / name, results) for name, results in shards.items()}
    subsets = {name: _subset_report(results, *hashes[name], unused_columns[name]) for name, results in shards.items()}
    images = np.concatenate([images for images, _ in hashes.values()])
    pairs = np.concatenate([pairs for _, pairs in hashes.values()])
    return ConversionReport(subsets, _total(list(subsets.values()), images, pairs))


def _subset_report(
    results: Sequence[ShardResult],
    images: npt.NDArray[np.int64],
    pairs: npt.NDArray[np.int64],
    unused_columns: list[str],
) -> SubsetReport:
    records = [result.record for result in results]
    skipped: dict[str, int] = {}
    for record in records:
        for reason, count in record.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + count
    unusable = {image.path: image for result in reversed(results) for image in reversed(result.unusable_images)}
    ordered = sorted(unusable.values(), key=lambda image: image.row)
    missing = [_at(image.place, image.path) for image in ordered if image.problem == MISSING]
    unreadable = [_at(image.place, f"{image.problem}: {image.reason}") for image in ordered if image.problem != MISSING]
    unusable_rows = [
        f"{row.place or row.key} ({row.side}): {row.reason}" for result in results for row in result.unusable_rows
    ]
    return SubsetReport(
        rows=sum(end - first for first, end in (record.rows for record in records)),
        samples=len(pairs),
        skipped=dict(sorted(skipped.items())),
        shards=len(records),
        bytes=sum(record.bytes for record in records),
        images=len(images),
        image_bytes=sum(record.image_bytes for record in records),
        distinct_images=len(np.unique(images)),
        distinct_pairs=len(np.unique(pairs)),
        missing_images=len(missing),
        unreadable_images=len(unreadable),
        unusable_rows=len(unusable_rows),
        first_missing=missing[:FIRST_NAMES],
        first_unreadable=unreadable[:FIRST_NAMES],
        first_unusable=unusable_rows[:FIRST_NAMES],
        unused_columns=unused_columns,
    )


def _at(place: str, what: str) -> str:
    return f"{place}: {what}" if place else what


def _hashes(folder: Path, results: Sequence[ShardResult]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The hash of every image in use, and of every pair of query and positive."""
    images, pairs = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for record in (result.record for result in results):
        columns = read_index(folder / f"{record.name}.parquet", record, image_hashes=True)
        images += [columns[f"{side}_image_hashes"] for side in SIDES]
        # An odd factor distinguishes (a, b) from (b, a). Sums wrap around, which numpy does silently for arrays.
        pairs.append(columns[f"{QUERY}_hash"] * np.int64(0x5851F42D4C957F2D) + columns[f"{POSITIVE}_hash"])
    return np.concatenate(images), np.concatenate(pairs)


def _total(
    subsets: Sequence[SubsetReport], images: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64]
) -> SubsetReport:
    skipped: dict[str, int] = {}
    for subset in subsets:
        for reason, count in subset.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + count
    sums: tuple[str, ...] = ("rows", "samples", "shards", "bytes", "images", "image_bytes")
    sums += ("missing_images", "unreadable_images", "unusable_rows")
    return SubsetReport(
        **{name: sum(getattr(subset, name) for subset in subsets) for name in sums},
        skipped=dict(sorted(skipped.items())),
        distinct_images=len(np.unique(images)),
        distinct_pairs=len(np.unique(pairs)),
        first_missing=[name for subset in subsets for name in subset.first_missing][:FIRST_NAMES],
        first_unreadable=[name for subset in subsets for name in subset.first_unreadable][:FIRST_NAMES],
        first_unusable=[name for subset in subsets for name in subset.first_unusable][:FIRST_NAMES],
        unused_columns=list(dict.fromkeys(name for subset in subsets for name in subset.unused_columns)),
    )
