"""Table of the unique items (text, image path) of all datasets of a run, in Arrow columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Indices = npt.NDArray[np.int32]


class ItemTable:
    """Items in the order of first use. Image paths are relative to the image folder; "" means no image.

    Arrow columns take a few bytes per item besides its text, and forked worker processes share them (the pages of
    Python strings would be copied, because reading a string changes its reference count).

    Args:
        columns: Text and image (string), file (int32, index into `files`), row (int32, counted within its file).
        files: Files that the items come from.
        instructions: Instruction for each file's items, if the prompt format has a place for one; "" means the format's
            default.
    """

    def __init__(self, columns: pa.Table, files: Sequence[str], instructions: Sequence[str] | None = None) -> None:
        self.columns = columns.combine_chunks()
        self.files = tuple(files)
        self.instructions = tuple("" for _ in files) if instructions is None else tuple(instructions)
        self._text, self._image, self._file, self._row = (_only_chunk(column) for column in self.columns.columns)

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    def text(self, index: int) -> str:
        """The item's text, "" if it has none."""
        return str(self._text[int(index)].as_py())

    def image(self, index: int) -> str:
        """The item's image path, "" if it has none."""
        return str(self._image[int(index)].as_py())

    def instruction(self, index: int) -> str | None:
        """The item's instruction, None if it has none."""
        return self.instructions[self._file[int(index)].as_py()] or None

    def use(self, index: int) -> str:
        """File and row of the item's first use, "<file> row <n>", for error messages."""
        return f"{self.files[self._file[int(index)].as_py()]} row {self._row[int(index)].as_py()}"

    def take(self, indices: npt.NDArray[np.integer]) -> tuple[pa.Array, pa.Array]:
        """Texts and image paths of several items; index -1 gives null."""
        wanted = pa.array(indices, mask=indices < 0)
        return self._text.take(wanted), self._image.take(wanted)


class ItemTableBuilder:
    """Collects items; equal items get the same index."""

    def __init__(self) -> None:
        self._indices: dict[tuple[str, str, str], int] = {}
        self._file: list[int] = []
        self._row: list[int] = []
        self._files: list[str] = []
        self._instructions: list[str] = []

    def start_file(self, path: str, instruction: str = "") -> None:
        """Sets the file and the instruction of items that are added from now on."""
        self._files.append(path)
        self._instructions.append(instruction)

    def add(self, texts: pa.Array, images: pa.Array, rows: npt.NDArray[np.int64]) -> Indices:
        """Adds entries of the current file.

        Args:
            texts, images: Strings without nulls, one per entry.
            rows: Row of each entry in the file.

        Returns:
            Item of each entry, int32 (entries,).
        """
        text_codes, image_codes = texts.dictionary_encode(), images.dictionary_encode()
        all_texts, all_images = text_codes.dictionary.to_pylist(), image_codes.dictionary.to_pylist()
        # Only distinct pairs are handled in Python: a thousand rows may share a pool of a thousand candidates.
        codes = text_codes.indices.to_numpy().astype(np.int64) * max(1, len(all_images))
        codes += image_codes.indices.to_numpy()
        pairs, first, pair_of_entry = np.unique(codes, return_index=True, return_inverse=True)
        item_of_pair = np.empty(len(pairs), dtype=np.int32)
        for pair in np.argsort(first):
            text, image = divmod(int(pairs[pair]), len(all_images))
            item_of_pair[pair] = self._index(all_texts[text], all_images[image], int(rows[first[pair]]))
        result: Indices = item_of_pair[pair_of_entry]
        return result

    def build(self) -> ItemTable:
        """The table of all items added."""
        columns = {
            "text": pa.array((text for text, _, _ in self._indices), pa.large_string(), size=len(self._indices)),
            "image": pa.array((image for _, image, _ in self._indices), pa.large_string(), size=len(self._indices)),
            "file": pa.array(self._file, pa.int32()),
            "row": pa.array(self._row, pa.int32()),
        }
        return ItemTable(pa.table(columns), self._files, self._instructions)

    def _index(self, text: str, image: str, row: int) -> int:
        index = self._indices.setdefault((text, image, self._instructions[-1]), len(self._indices))
        if index == len(self._file):
            self._file.append(len(self._files) - 1)
            self._row.append(row)
        return index


def _only_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
