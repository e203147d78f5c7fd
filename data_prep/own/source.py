"""The user's own files and folders, as subsets for the converter."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.own.folders import TABLE_SUFFIXES, is_saved_to_disk, split_files
from data_prep.own.tables import open_table
from data_prep.rows import Table
from data_prep.source import ALL_SUBSETS, DEFAULT_SPLIT, subset_names
from vlm2vec.errors import InputError
from vlm2vec.messages.words import counted
from vlm2vec.shards.schema import SUBSET_NAME

_MAX_NAME = 60


@dataclass(frozen=True)
class OwnSubset:
    """A file, or a split of a folder.

    Attributes:
        given: The path that the user gave.
        root: The folder that the files' names in the plan are relative to.
        files: Its tables.
    """

    given: Path
    root: Path
    files: tuple[Path, ...]


@dataclass(frozen=True)
class OwnData:
    """The user's data to convert; see `Source`.

    Attributes:
        subsets: The subsets by name.
        columns: The value of `--columns`; None: columns are recognized by their names.
        instruction: Put before the text of every query.
        image_dir: The folder that image paths are relative to; None: each table's folder.
        allow_links: Whether to follow links that lead out of it.
    """

    subsets: Mapping[str, OwnSubset]
    columns: Mapping[str, str] | None = None
    instruction: str | None = None
    image_dir: Path | None = None
    allow_links: bool = False

    def names(self, split: str) -> list[str]:
        """The subsets' names; the files of the split were chosen before."""
        return list(self.subsets)

    def tables(self, name: str, split: str) -> Sequence[Table]:
        """A subset's tables, in order.

        Raises:
            InputError: A table cannot be read, or lacks a column.
        """
        subset = self.subsets[name]
        tables: list[Table] = []
        for path in subset.files:
            first_row = sum(table.num_rows for table in tables)
            file = str(path.relative_to(subset.root))
            tables.append(open_table(path, file, first_row, self.columns, self.instruction))
        return tables

    def image_dir_of(self, name: str) -> Path:
        """The image folder that the user gave, or the folder of the subset's tables."""
        folders = {str(path.parent) for path in self.subsets[name].files}
        return self.image_dir or Path(os.path.commonpath(folders))

    def file_name(self, table: Table) -> str:
        """The table's path below the path that the user gave."""
        subset = next(each for each in self.subsets.values() if table.path in each.files)
        return str(table.path.relative_to(subset.root))

    def where(self, name: str) -> str:
        """The path that the user gave."""
        return str(self.subsets[name].given)


def is_own(paths: Sequence[str], names: Sequence[str] | None, split: str | None, has_columns: bool) -> bool:
    """Whether `--dataset_name` is the user's own data, not MMEB-train (a folder, or a repository on the hub).

    Args:
        paths: The value of `--dataset_name`.
        names: The value of `--subset_name`.
        split: The value of `--split_name`.
        has_columns: Whether `--columns` is given, which only the user's own data has.
    """
    path = Path(paths[0])
    if len(paths) > 1 or has_columns or path.is_file() or not path.is_dir():
        return len(paths) > 1 or has_columns or path.is_file() or path.suffix.lower() in TABLE_SUFFIXES
    if is_saved_to_disk(path):
        return True
    if names is not None and (list(names) == [ALL_SUBSETS] or any((path / name).is_dir() for name in names)):
        return False
    try:
        subsets = subset_names(path, [ALL_SUBSETS], split or DEFAULT_SPLIT)
    except InputError:
        return any(file.suffix.lower() in TABLE_SUFFIXES for file in path.rglob("*"))
    return subsets == ["data"]  # for a repository on the hub


def own_subsets(
    paths: Sequence[Path], names: Sequence[str] | None, split: str | None, config: str | None
) -> dict[str, OwnSubset]:
    """Makes one subset of each file or folder.

    Args:
        paths: Files, and folders that `datasets` can load.
        names: The subsets' names; None: the files' and folders' names.
        split: The split of folders.
        config: The configuration of folders.

    Raises:
        InputError: The numbers of names and paths differ, a name is invalid or occurs twice, a split is given for a
            file, or a folder has no tables.
    """
    if names is not None and len(names) != len(paths):
        raise InputError(
            f"--subset_name {' '.join(names)}: {counted(len(names), 'name')} for {counted(len(paths), 'file')} or "
            f"{'folder' if len(paths) == 1 else 'folders'} in --dataset_name; give one for each"
        )
    subsets: dict[str, OwnSubset] = {}
    for number, path in enumerate(paths):
        name = subset_name(path) if names is None else names[number]
        if not SUBSET_NAME.fullmatch(name) or name == ALL_SUBSETS:
            raise InputError(
                f"{path}: {name!r} cannot be a subset's name (up to {_MAX_NAME} letters, digits, '-' and '_', and not "
                f"'{ALL_SUBSETS}'); give --subset_name"
            )
        if name in subsets:
            raise InputError(
                f"{subsets[name].given} and {path} would both be subset {name}; give each a name with --subset_name"
            )
        subsets[name] = _subset(path, split, config)
    return subsets


def subset_name(path: Path) -> str:
    """The subset's name from a file's or folder's: characters that a tar member's name cannot contain become "_"."""
    stem = path.resolve().stem if path.is_file() else path.resolve().name
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:_MAX_NAME]


def _subset(path: Path, split: str | None, config: str | None) -> OwnSubset:
    if path.is_dir():
        files = split_files(path, split, config)
        return OwnSubset(path, path, tuple(files))
    for flag, value in (("--split_name", split), ("--config_name", config)):
        if value is not None:
            raise InputError(f"{flag} {value}: {path} is a file, for which {flag} has no effect; leave it out")
    return OwnSubset(path, path.parent, (path,))
