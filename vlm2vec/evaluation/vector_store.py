"""Stores the vectors of a plan's items in a folder: as blocks that survive a kill, then as one memory-mapped file."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlm2vec.errors import InputError
from vlm2vec.evaluation.encoding_plan import EncodingPlan
from vlm2vec.files import committed

_PLAN, _VECTORS, _BLOCKS = "plan.npz", "vectors.npy", "blocks"
_PLAN_ARRAYS = {"order": np.int32, "position": np.int32, "bounds": np.int64, "costs": np.int64}
# What numpy and Arrow raise for damaged files.
_UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, pa.ArrowException),
)


class VectorStore:
    """A folder with one plan and the vectors of its items.

    Every file appears under its name only when complete, so that a restart encodes only missing blocks. Ranks may write
    different blocks at the same time; ranks on several machines need a shared folder.

    All methods that write raise `InputError` if the disk refuses.

    Args:
        folder: Folder of this plan and model, not shared with others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_plan(self, plan: EncodingPlan) -> None:
        """Writes the plan, into an existing folder or a new one."""
        with self.writing():
            (self.folder / _BLOCKS).mkdir(parents=True, exist_ok=True)
            with committed(self.folder / _PLAN) as path, path.open("wb") as file:
                np.savez(file, **{name: getattr(plan, name) for name in _PLAN_ARRAYS})

    def read_plan(self, num_items: int, num_image_batches: int, digest: str) -> EncodingPlan:
        """Reads the plan.

        Args:
            num_items: Number of items in the plan's table.
            num_image_batches, digest: See `EncodingPlan`.

        Raises:
            InputError: The file is damaged.
        """
        path = self.folder / _PLAN
        with self.reading(path):
            plan = EncodingPlan(**arrays(path, _PLAN_ARRAYS), num_image_batches=num_image_batches, digest=digest)
            expect_ends(plan.bounds, len(plan.order))
            expect_indices(plan.order, num_items)
            expect_indices(plan.position, len(plan.order))
            expect(len(plan.position) == num_items, "not one position for each item")
            expect(len(plan.costs) == plan.num_batches >= plan.num_image_batches, "not one cost for each batch")
        return plan

    def missing_blocks(self, plan: EncodingPlan) -> list[int]:
        """Numbers of the blocks that are not encoded yet."""
        if (self.folder / _VECTORS).is_file():
            return []
        return [number for number in range(len(plan.blocks())) if not self._block(number).is_file()]

    def write_block(self, number: int, vectors: npt.NDArray[np.float32]) -> None:
        """Stores the vectors of a block, float32 (items of the block, hidden).

        A kill of the process loses no stored block. The call does not wait for the disk: a power cut may damage blocks
        of the last 30 seconds; that is detected when blocks are joined, and the same command encodes them again.
        """
        with self.writing(), committed(self._block(number), durable=False) as path, path.open("wb") as file:
            np.save(file, vectors)

    def assemble(self, plan: EncodingPlan) -> None:
        """Joins all blocks into one file; called on one rank when no block is missing."""
        if (self.folder / _VECTORS).is_file():
            return
        blocks = plan.blocks()
        hidden = self._block_vectors(0, int(plan.bounds[blocks[0].stop])).shape[1]
        with self.writing(), committed(self.folder / _VECTORS) as path:
            vectors = np.lib.format.open_memmap(path, "w+", np.float32, (len(plan.order), hidden))
            for number, batches in enumerate(blocks):
                start, end = int(plan.bounds[batches.start]), int(plan.bounds[batches.stop])
                vectors[start:end] = self._block_vectors(number, end - start, hidden)
            vectors.flush()
            del vectors
        shutil.rmtree(self.folder / _BLOCKS)

    def vectors(self) -> npt.NDArray[np.float32]:
        """Reads all vectors in the plan's order, float32 (distinct items, hidden), memory-mapped.

        Raises:
            InputError: The file is damaged.
        """
        path = self.folder / _VECTORS
        with self.reading(path):
            vectors: npt.NDArray[np.float32] = np.load(path, mmap_mode="r")
            expect(vectors.dtype == np.float32 and vectors.ndim == 2, "not vectors of float32")
        return vectors

    def _block_vectors(self, number: int, count: int, hidden: int | None = None) -> npt.NDArray[np.float32]:
        """Reads the vectors of a block; removes a damaged one, so that the same command encodes it again."""
        path = self._block(number)
        try:
            with self.reading(path):
                vectors: npt.NDArray[np.float32] = np.load(path)
                expect(vectors.dtype == np.float32 and vectors.ndim == 2, "not vectors of float32")
                expect(len(vectors) == count, f"{len(vectors)} vectors, not {count}")
                expect(hidden in (None, vectors.shape[1]), f"vectors of {vectors.shape[1]} numbers, not {hidden}")
        except InputError:
            path.unlink(missing_ok=True)
            raise
        return vectors

    @contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """Context that reports a damaged file as one line, an `InputError`."""
        try:
            yield
        except _UNREADABLE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{path}: cannot be read ({reason}); remove {self.folder} and run the same command again"
            ) from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Context that reports a failed write as one line, an `InputError`."""
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.folder}: cannot write there ({error.strerror or error})") from error

    def _block(self, number: int) -> Path:
        return self.folder / _BLOCKS / f"block-{number:05d}.npy"


def arrays(path: Path, kinds: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Reads the arrays of a file; each must have one dimension and the expected type."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in kinds}
    for name, array in arrays.items():
        expect(array.ndim == 1 and array.dtype == kinds[name], f"{name} is {array.dtype} {array.shape}")
    return arrays


def expect_ends(ends: npt.NDArray[np.int64], total: int) -> None:
    """Raises `ValueError` unless the ends of parts rise from 0 to `total`."""
    fits = len(ends) > 0 and ends[0] == 0 and ends[-1] == total and bool((np.diff(ends) >= 0).all())
    expect(fits, f"parts do not cover {total} entries")


def expect_indices(indices: npt.NDArray[np.int32], total: int) -> None:
    """Raises `ValueError` for indices that are negative or not below `total`."""
    expect(not len(indices) or (indices.min() >= 0 and indices.max() < total), f"an index is not below {total}")


def expect(holds: bool, problem: str) -> None:
    """Raises `ValueError` unless a condition holds; `VectorStore.reading` reports it as one line."""
    if not holds:
        raise ValueError(problem)
