"""Folder of one evaluation: its data, vectors and ranked rows, so that a killed evaluation resumes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, TypeAdapter

from vlm2vec.errors import InputError
from vlm2vec.evaluation.data.datasets import EvalData, EvalRows
from vlm2vec.evaluation.data.items import ItemTable
from vlm2vec.evaluation.encoding_plan import EncodingPlan
from vlm2vec.evaluation.vector_store import VectorStore, arrays, expect, expect_ends, expect_indices
from vlm2vec.files import committed
from vlm2vec.formats.json_files import Count, Sha256, parsed

_ABOUT, _ITEMS = "about.json", "items.arrow"
_ROW_ARRAYS = {"queries": np.int32, "candidates": np.int32, "offsets": np.int64}


@dataclass(frozen=True)
class _About:
    """Content of about.json, which describes the folder."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    datasets: tuple[str, ...]
    files: tuple[str, ...]
    instructions: tuple[str, ...]
    num_items: Count
    num_image_batches: Count
    digest: Sha256


_ABOUT_FILE = TypeAdapter(_About)


class EvalStore(VectorStore):
    """Files of one evaluation: one model on one selection of datasets; the folder's name is a hash of both.

    Every file appears under its name only when complete, so that finished blocks of vectors and ranked datasets are
    used again after a kill. Ranks may write different files at the same time; ranks on several machines need a shared
    folder.

    All methods that write raise `InputError` if the disk refuses.

    Args:
        folder: Folder of this evaluation, not shared with others.
    """

    def write_data(self, data: EvalData, plan: EncodingPlan) -> None:
        """Writes what is to be encoded and ranked; every start writes it again."""
        names = tuple(rows.name for rows in data.datasets)
        items = data.items
        about = _About(names, items.files, items.instructions, len(items), plan.num_image_batches, plan.digest)
        with self.writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            with (
                committed(self.folder / _ITEMS, durable=False) as path,
                pa.ipc.new_file(path, data.items.columns.schema) as file,
            ):
                file.write_table(data.items.columns)
            for number, rows in enumerate(data.datasets):
                with committed(self._rows(number), durable=False) as path, path.open("wb") as file:
                    np.savez(file, queries=rows.queries, candidates=rows.candidates, offsets=rows.offsets)
            self.write_plan(plan)
            with committed(self.folder / _ABOUT, durable=False) as path:
                path.write_text(json.dumps(asdict(about)) + "\n", encoding="utf-8")

    def _about(self) -> _About:
        """Reads what `write_data` recorded.

        Raises:
            InputError: This machine does not see the folder that rank 0 wrote, or the file is damaged.
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
        """Reads the items, memory-mapped.

        Raises:
            InputError: The file is damaged.
        """
        about, path = self._about(), self.folder / _ITEMS
        with self.reading(path):
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            table.validate(full=True)
            expect(len(about.instructions) == len(about.files), "not one instruction for each file")
            items = ItemTable(table, about.files, about.instructions)
            expect(len(items) == about.num_items, f"{len(items)} items, not {about.num_items}")
            expect_indices(table.column("file").to_numpy(), len(about.files))
        return items

    def plan(self) -> EncodingPlan:
        """Reads the encoding plan.

        Raises:
            InputError: The file is damaged.
        """
        about = self._about()
        return self.read_plan(about.num_items, about.num_image_batches, about.digest)

    def rows(self, number: int) -> EvalRows:
        """Reads a dataset, by its number.

        Raises:
            InputError: The file is damaged.
        """
        about, path = self._about(), self._rows(number)
        with self.reading(path):
            expect(number < len(about.datasets), f"there are {len(about.datasets)} datasets")
            found = arrays(path, _ROW_ARRAYS)
            rows = EvalRows(about.datasets[number], found["queries"], found["candidates"], found["offsets"])
            expect_ends(rows.offsets, len(rows.candidates))
            expect_indices(rows.queries, about.num_items)
            expect_indices(rows.candidates, about.num_items)
            expect(len(rows.offsets) == len(rows) + 1, "not one offset for each row")
        return rows

    def predictions_file(self, number: int, strict_original: bool) -> Path:
        """File of a dataset's ranked rows."""
        return self.folder / f"predictions-{number:05d}{'-strict' if strict_original else ''}.parquet"

    def missing_predictions(self, num_datasets: int, strict_original: bool) -> list[int]:
        """Numbers of the datasets that are not ranked yet."""
        return [
            number for number in range(num_datasets) if not self.predictions_file(number, strict_original).is_file()
        ]

    def write_predictions(self, number: int, strict_original: bool, table: pa.Table) -> None:
        """Stores the ranked rows of a dataset."""
        with self.writing(), committed(self.predictions_file(number, strict_original)) as path:
            pq.write_table(table, path, compression="zstd")

    def _rows(self, number: int) -> Path:
        return self.folder / f"rows-{number:05d}.npz"
