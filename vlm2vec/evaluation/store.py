"""The folder of one scoring: what is read, encoded and ranked, kept so that a kill at any moment loses little."""

from __future__ import annotations

import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, TypeAdapter

from vlm2vec.errors import InputError
from vlm2vec.evaluation.data.datasets import EvalData, EvalRows
from vlm2vec.evaluation.data.items import ItemTable
from vlm2vec.evaluation.encoding_plan import EncodingPlan
from vlm2vec.files import committed
from vlm2vec.formats.json_files import Count, Sha256, parsed

_ABOUT, _ITEMS, _PLAN, _VECTORS, _BLOCKS = "about.json", "items.arrow", "plan.npz", "vectors.npy", "blocks"
_PLAN_ARRAYS = {"order": np.int32, "position": np.int32, "bounds": np.int64, "costs": np.int64}
_ROW_ARRAYS = {"queries": np.int32, "candidates": np.int32, "offsets": np.int64}
# What numpy and Arrow raise for damaged files.
_UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, pa.ArrowException),
)


@dataclass(frozen=True)
class _About:
    """What the folder holds, as about.json says it."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    datasets: tuple[str, ...]
    files: tuple[str, ...]
    instructions: tuple[str, ...]
    num_items: Count
    num_image_batches: Count
    digest: Sha256


_ABOUT_FILE = TypeAdapter(_About)


class EvalStore:
    """Files of one model on one selection of datasets; their common name is a hash of both.

    Every file gets its name when it is complete, so what is there is finished: after a kill, blocks of vectors and
    ranked datasets are taken up again. Ranks may write different files at the same time; ranks on several machines need
    a folder that they share.

    Everything that writes raises `InputError` where the disk refuses.

    Args:
        folder: of this key alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_data(self, data: EvalData, plan: EncodingPlan) -> None:
        """Writes what is to be encoded and ranked."""
        names = tuple(rows.name for rows in data.datasets)
        items = data.items
        about = _About(names, items.files, items.instructions, len(items), plan.num_image_batches, plan.digest)
        with self._told():
            (self.folder / _BLOCKS).mkdir(parents=True, exist_ok=True)
            with committed(self.folder / _ITEMS) as path, pa.ipc.new_file(path, data.items.columns.schema) as file:
                file.write_table(data.items.columns)
            for number, rows in enumerate(data.datasets):
                with committed(self._rows(number)) as path, path.open("wb") as file:
                    np.savez(file, queries=rows.queries, candidates=rows.candidates, offsets=rows.offsets)
            with committed(self.folder / _PLAN) as path, path.open("wb") as file:
                np.savez(file, **{name: getattr(plan, name) for name in _PLAN_ARRAYS})
            with committed(self.folder / _ABOUT) as path:
                path.write_text(json.dumps(asdict(about)) + "\n", encoding="utf-8")

    def _about(self) -> _About:
        """What `write_data` noted.

        Raises:
            InputError: this machine does not see the folder that rank 0 wrote, or the file is damaged.
        """
        path = self.folder / _ABOUT
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot read what rank 0 wrote there ({error.strerror}); ranks on several machines "
                "need an output folder that all of them share"
            ) from error
        return parsed(_ABOUT_FILE, data, str(path))

    def items(self) -> ItemTable:
        """The items, memory-mapped.

        Raises:
            InputError: the file is damaged.
        """
        about, path = self._about(), self.folder / _ITEMS
        with self._read(path):
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            table.validate(full=True)
            _expect(len(about.instructions) == len(about.files), "not one instruction for each file")
            items = ItemTable(table, about.files, about.instructions)
            _expect(len(items) == about.num_items, f"{len(items)} items, not {about.num_items}")
            _expect_indices(table.column("file").to_numpy(), len(about.files))
        return items

    def plan(self) -> EncodingPlan:
        """The batches.

        Raises:
            InputError: the file is damaged.
        """
        about, path = self._about(), self.folder / _PLAN
        with self._read(path):
            plan = EncodingPlan(
                **_arrays(path, _PLAN_ARRAYS), num_image_batches=about.num_image_batches, digest=about.digest
            )
            _expect_ends(plan.bounds, len(plan.order))
            _expect_indices(plan.order, about.num_items)
            _expect_indices(plan.position, len(plan.order))
            _expect(len(plan.position) == about.num_items, "not one position for each item")
            _expect(len(plan.costs) == plan.num_batches >= plan.num_image_batches, "not one cost for each batch")
        return plan

    def rows(self, number: int) -> EvalRows:
        """A dataset, by its number.

        Raises:
            InputError: the file is damaged.
        """
        about, path = self._about(), self._rows(number)
        with self._read(path):
            _expect(number < len(about.datasets), f"there are {len(about.datasets)} datasets")
            arrays = _arrays(path, _ROW_ARRAYS)
            rows = EvalRows(about.datasets[number], arrays["queries"], arrays["candidates"], arrays["offsets"])
            _expect_ends(rows.offsets, len(rows.candidates))
            _expect_indices(rows.queries, about.num_items)
            _expect_indices(rows.candidates, about.num_items)
            _expect(len(rows.offsets) == len(rows) + 1, "not one offset for each row")
        return rows

    def missing_blocks(self, plan: EncodingPlan) -> list[int]:
        """Numbers of the blocks that are still to be encoded."""
        if (self.folder / _VECTORS).is_file():
            return []
        return [number for number in range(len(plan.blocks())) if not self._block(number).is_file()]

    def write_block(self, number: int, vectors: npt.NDArray[np.float32]) -> None:
        """Keeps the vectors of a block, float32 (items of the block, hidden)."""
        with self._told(), committed(self._block(number)) as path, path.open("wb") as file:
            np.save(file, vectors)

    def assemble(self, plan: EncodingPlan) -> None:
        """Joins all blocks into one file; called on one rank when no block is missing."""
        if (self.folder / _VECTORS).is_file():
            return
        blocks = plan.blocks()
        hidden = self._block_vectors(0, int(plan.bounds[blocks[0].stop])).shape[1]
        with self._told(), committed(self.folder / _VECTORS) as path:
            vectors = np.lib.format.open_memmap(path, "w+", np.float32, (len(plan.order), hidden))
            for number, batches in enumerate(blocks):
                start, end = int(plan.bounds[batches.start]), int(plan.bounds[batches.stop])
                vectors[start:end] = self._block_vectors(number, end - start, hidden)
            vectors.flush()
            del vectors
        shutil.rmtree(self.folder / _BLOCKS)

    def vectors(self) -> npt.NDArray[np.float32]:
        """All vectors in the plan's order, float32 (distinct items, hidden), memory-mapped.

        Raises:
            InputError: the file is damaged.
        """
        path = self.folder / _VECTORS
        with self._read(path):
            vectors: npt.NDArray[np.float32] = np.load(path, mmap_mode="r")
            _expect(vectors.dtype == np.float32 and vectors.ndim == 2, "not vectors of float32")
        return vectors

    def predictions_file(self, number: int, strict_original: bool) -> Path:
        """Where the ranked rows of a dataset are."""
        return self.folder / f"predictions-{number:05d}{'-strict' if strict_original else ''}.parquet"

    def missing_predictions(self, num_datasets: int, strict_original: bool) -> list[int]:
        """Numbers of the datasets that are still to be ranked."""
        return [
            number for number in range(num_datasets) if not self.predictions_file(number, strict_original).is_file()
        ]

    def write_predictions(self, number: int, strict_original: bool, table: pa.Table) -> None:
        """Keeps the ranked rows of a dataset."""
        with self._told(), committed(self.predictions_file(number, strict_original)) as path:
            pq.write_table(table, path, compression="zstd")

    def _block_vectors(self, number: int, count: int, hidden: int | None = None) -> npt.NDArray[np.float32]:
        """The vectors of a block; a damaged one is removed, so that the same command encodes it again."""
        path = self._block(number)
        try:
            with self._read(path):
                vectors: npt.NDArray[np.float32] = np.load(path)
                _expect(vectors.dtype == np.float32 and vectors.ndim == 2, "not vectors of float32")
                _expect(len(vectors) == count, f"{len(vectors)} vectors, not {count}")
                _expect(hidden in (None, vectors.shape[1]), f"vectors of {vectors.shape[1]} numbers, not {hidden}")
        except InputError:
            path.unlink(missing_ok=True)
            raise
        return vectors

    @contextmanager
    def _read(self, path: Path) -> Iterator[None]:
        """A damaged file, in one line."""
        try:
            yield
        except _UNREADABLE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{path}: cannot be read ({reason}); remove {self.folder} and run the same command again"
            ) from error

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the disk refuses, in one line."""
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.folder}: cannot write there ({error.strerror or error})") from error

    def _rows(self, number: int) -> Path:
        return self.folder / f"rows-{number:05d}.npz"

    def _block(self, number: int) -> Path:
        return self.folder / _BLOCKS / f"block-{number:05d}.npy"


def _arrays(path: Path, kinds: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file, each in one dimension and of its type."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in kinds}
    for name, array in arrays.items():
        _expect(array.ndim == 1 and array.dtype == kinds[name], f"{name} is {array.dtype} {array.shape}")
    return arrays


def _expect_ends(ends: npt.NDArray[np.int64], total: int) -> None:
    fits = len(ends) > 0 and ends[0] == 0 and ends[-1] == total and bool((np.diff(ends) >= 0).all())
    _expect(fits, f"parts do not cover {total} entries")


def _expect_indices(indices: npt.NDArray[np.int32], total: int) -> None:
    _expect(not len(indices) or (indices.min() >= 0 and indices.max() < total), f"an index is not below {total}")


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
