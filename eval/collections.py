"""Finds the collections in a folder, and the facts about those that are part of MMEB-V2."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from vlm2vec.errors import InputError
from vlm2vec.evaluation.retrieval.tables import SUFFIXES
from vlm2vec.mmeb import SELECT_ALL
from vlm2vec.mmeb_v2 import VISDOC_SETS, VisdocSet, visdoc_set

VISDOC = "visdoc"


@dataclass(frozen=True)
class FoundCollection:
    """A folder with a collection.

    Attributes:
        name: MMEB-V2's name if it is one of its datasets, otherwise the folder's.
        folder: The folder.
        known: The facts about the MMEB-V2 dataset; None: it is not one of them.
    """

    name: str
    folder: Path
    known: VisdocSet | None


def find_collections(dataset_name: str, selections: Sequence[str]) -> list[FoundCollection]:
    """Finds the selected collections; MMEB-V2's come first, in its order.

    Args:
        dataset_name: A folder with one collection or several, or a dataset on the Hugging Face hub.
        selections: "all", "visdoc", a group of MMEB-V2, or names.

    Raises:
        InputError: There is no such folder, it contains no collection, or a selection matches none.
    """
    folder = _resolve(dataset_name)
    # A snapshot's folder is named after its commit.
    names = {folder: dataset_name.rpartition("/")[2] if not Path(dataset_name).is_dir() else folder.resolve().name}
    folders = [folder] if _is_collection(folder) else sorted(each for each in folder.iterdir() if _is_collection(each))
    if not folders:
        raise InputError(
            f"--dataset_name {dataset_name}: no collection: expected queries, corpus and qrels (as folders, .jsonl or "
            ".parquet) there or in its folders"
        )
    found = []
    for each in folders:
        known = visdoc_set(names.get(each, each.name))
        found.append(FoundCollection(known.name if known else names.get(each, each.name), each, known))
    _refuse_twins(found)
    order = {each.name: place for place, each in enumerate(VISDOC_SETS)}
    found.sort(key=lambda each: (order.get(each.name, len(order)), each.name))
    chosen: set[str] = set()
    for selection in selections:
        wanted = {each.name for each in found if selection in _groups(each)}
        if not wanted:
            have = ", ".join(each.name for each in found)
            raise InputError(f"--subset_name {selection}: no such collection or group there; it has {have}")
        chosen |= wanted
    return [each for each in found if each.name in chosen]


def _groups(found: FoundCollection) -> tuple[str, ...]:
    known = (VISDOC, found.known.group) if found.known else ()
    return (SELECT_ALL, found.name, found.folder.name, *known)


def _refuse_twins(found: Sequence[FoundCollection]) -> None:
    first: dict[str, Path] = {}
    for each in found:
        if each.name in first:
            raise InputError(f"{first[each.name]} and {each.folder} are both {each.name}; move one of them elsewhere")
        first[each.name] = each.folder


def _is_collection(folder: Path) -> bool:
    return folder.is_dir() and any(
        (base / "queries").is_dir() or any((base / f"queries{suffix}").is_file() for suffix in SUFFIXES)
        for base in (folder, folder / "data")
    )


def _resolve(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"--dataset_name {name}: no such folder")
    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    except Exception as error:  # offline, unknown, gated, malformed: the hub's client has many types of errors
        reason = " ".join(str(error).split())
        raise InputError(f"--dataset_name {name}: neither a folder nor a dataset on the hub ({reason})") from error
