"""Finds the files of a split in a Hugging Face dataset folder."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm2vec.errors import InputError

TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_ARROW = ".arrow"
DEFAULT_SPLIT = "train"
# The files that `save_to_disk` writes.
_SAVED = ("dataset_dict.json", "state.json")


def is_saved_to_disk(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote the folder."""
    return any((folder / name).is_file() for name in _SAVED)


def split_files(folder: Path, split: str | None, config: str | None) -> list[Path]:
    """The tables of a dataset's split, in order.

    Args:
        folder: A folder written by `save_to_disk`, or one that `datasets.load_dataset` accepts: parquet, JSONL or CSV
            files, an image folder with metadata, a clone of a repository on the hub.
        split: The split's name; None: the only one, or "train".
        config: The configuration, if the dataset has several.

    Raises:
        InputError: `datasets` does not recognize the folder, there is no such split or configuration, or it has no
            tables.
    """
    if is_saved_to_disk(folder):
        if config is not None:
            raise InputError(f"{folder}: saved by save_to_disk, it has no configurations; leave out --config_name")
        files = _saved_files(folder, split)
    else:
        files = _found_files(folder, split, config)
    return [_inside(folder, path) for path in files]


def _saved_files(folder: Path, split: str | None) -> list[Path]:
    from datasets import DatasetDict, load_from_disk  # takes a second

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # its readers raise many types of exceptions
        raise _unreadable(folder, error) from error
    if isinstance(saved, DatasetDict):
        saved = saved[_chosen(folder, list(saved), split)]
    elif split is not None:
        raise InputError(f"{folder}: a dataset without splits; leave out --split_name")
    return [Path(file["filename"]) for file in saved.cache_files]


def _found_files(folder: Path, split: str | None, config: str | None) -> list[Path]:
    from datasets import load_dataset_builder  # takes a second

    try:
        with tempfile.TemporaryDirectory() as cache:  # nothing is loaded; only a lock file is written there
            found: Any = load_dataset_builder(str(folder), config, cache_dir=cache).config.data_files
    except Exception as error:
        raise _unreadable(folder, error) from error
    by_split: Mapping[str, Sequence[str]] = {str(name): files for name, files in (found or {}).items()}
    if not by_split:
        raise InputError(f"{folder}: no {', '.join(TABLE_SUFFIXES)} files in it")
    name = _chosen(folder, list(by_split), split)
    files = sorted(Path(re.sub(r"^file://", "", file)) for file in by_split[name])
    tables = [path for path in files if path.suffix.lower() in (*TABLE_SUFFIXES, _ARROW)]
    if not tables:
        kinds = ", ".join(sorted({path.suffix for path in files})[:5])
        raise InputError(f"{folder}: split {name} has no {', '.join(TABLE_SUFFIXES)} files, only {kinds}")
    return tables


def _chosen(folder: Path, splits: list[str], split: str | None) -> str:
    if split is None:
        if len(splits) > 1 and DEFAULT_SPLIT not in splits:
            raise InputError(f"{folder}: has the splits {', '.join(splits)}; choose one with --split_name")
        return splits[0] if len(splits) == 1 else DEFAULT_SPLIT
    if split not in splits:
        raise InputError(f"{folder}: no split {split}; it has {', '.join(splits)}")
    return split


def _inside(folder: Path, path: Path) -> Path:
    """The path below the folder as given. Links may lead out, because the hub's client stores files as links."""
    plain = Path(os.path.normpath(path.absolute()))
    for root in (Path(os.path.normpath(folder.absolute())), folder.resolve()):
        if plain.is_relative_to(root):
            return folder / plain.relative_to(root)
    raise InputError(f"{folder}: refers to {path}, which is outside the folder")


def _unreadable(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder}: not a dataset that `datasets` can load ({' '.join(str(error).split())})")
