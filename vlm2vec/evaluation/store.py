"""The folder of one scoring: what is read, encoded and ranked, kept so that a kill at any moment loses little."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vlm2vec.errors import InputError
from vlm2vec.evaluation.datasets import EvalData, EvalRows
from vlm2vec.evaluation.items import ItemTable
from vlm2vec.evaluation.plan import EncodePlan
from vlm2vec.files import committed

_ABOUT, _ITEMS, _PLAN, _VECTORS, _BLOCKS = "about.json", "items.arrow", "plan.npz", "vectors.npy", "blocks"
_PLAN_ARRAYS = ("order", "position", "bounds", "costs")


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

    def write_data(self, data: EvalData, plan: EncodePlan) -> None:
        """Writes what is to be encoded and ranked."""
        about = {
            "datasets": [rows.name for rows in data.datasets],
            "files": data.items.files,
            "num_image_batches": plan.num_image_batches,
            "digest": plan.digest,
        }
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
                path.write_text(json.dumps(about) + "\n", encoding="utf-8")

    def about(self) -> dict[str, Any]:
        """What `write_data` noted.

        Raises:
            InputError: this machine does not see the folder that rank 0 wrote.
        """
        try:
            about: dict[str, Any] = json.loads((self.folder / _ABOUT).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot read what rank 0 wrote there ({error.strerror}); ranks on several machines "
                "need an output folder that all of them share"
            ) from error
        return about

    def items(self) -> ItemTable:
        """The items, memory-mapped."""
        source = pa.memory_map(str(self.folder / _ITEMS))
        return ItemTable(pa.ipc.open_file(source).read_all(), self.about()["files"])

    def plan(self) -> EncodePlan:
        """The batches."""
        about = self.about()
        with np.load(self.folder / _PLAN) as arrays:
            return EncodePlan(
                **{name: arrays[name] for name in _PLAN_ARRAYS},
                num_image_batches=about["num_image_batches"],
                digest=about["digest"],
            )

    def rows(self, number: int) -> EvalRows:
        """A dataset, by its number."""
        with np.load(self._rows(number)) as arrays:
            return EvalRows(
                self.about()["datasets"][number], arrays["queries"], arrays["candidates"], arrays["offsets"]
            )

    def missing_blocks(self, plan: EncodePlan) -> list[int]:
        """Numbers of the blocks that are still to be encoded."""
        if (self.folder / _VECTORS).is_file():
            return []
        return [number for number in range(len(plan.blocks())) if not self._block(number).is_file()]

    def write_block(self, number: int, vectors: npt.NDArray[np.float32]) -> None:
        """Keeps the vectors of a block, float32 (items of the block, hidden)."""
        with self._told(), committed(self._block(number)) as path, path.open("wb") as file:
            np.save(file, vectors)

    def assemble(self, plan: EncodePlan) -> None:
        """Joins all blocks into one file; called on one rank when no block is missing."""
        if (self.folder / _VECTORS).is_file():
            return
        blocks = plan.blocks()
        first = np.load(self._block(0), mmap_mode="r")
        with self._told(), committed(self.folder / _VECTORS) as path:
            vectors = np.lib.format.open_memmap(path, "w+", np.float32, (len(plan.order), first.shape[1]))
            for number, batches in enumerate(blocks):
                vectors[plan.bounds[batches.start] : plan.bounds[batches.stop]] = np.load(self._block(number))
            vectors.flush()
            del vectors
        shutil.rmtree(self.folder / _BLOCKS)

    def vectors(self) -> npt.NDArray[np.float32]:
        """All vectors in the plan's order, float32 (distinct items, hidden), memory-mapped."""
        vectors: npt.NDArray[np.float32] = np.load(self.folder / _VECTORS, mmap_mode="r")
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
