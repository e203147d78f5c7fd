"""Stores a collection in a file, for other ranks and for resumed runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlm2vec.errors import InputError
from vlm2vec.evaluation.retrieval.collection import Collection
from vlm2vec.evaluation.retrieval.metrics import Relevance
from vlm2vec.files import committed


def write_collection(path: Path, collection: Collection) -> None:
    """Writes a collection; the file appears only when complete.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        with committed(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                name=np.array(collection.name),
                query_ids=np.array(collection.query_ids),
                queries=collection.queries,
                document_ids=np.array(collection.document_ids),
                documents=collection.documents,
                offsets=collection.relevance.offsets,
                judged=collection.relevance.documents,
                grades=collection.relevance.grades,
                notes=np.array(collection.notes, dtype=np.str_),
            )
    except OSError as error:
        raise InputError(f"{path}: cannot write it ({error.strerror or error})") from error


def read_stored_collection(path: Path) -> Collection:
    """Reads what `write_collection` wrote, without unpickling.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            collection = Collection(
                name=str(file["name"]),
                query_ids=tuple(file["query_ids"].tolist()),
                queries=file["queries"],
                document_ids=tuple(file["document_ids"].tolist()),
                documents=file["documents"],
                relevance=Relevance(file["offsets"], file["judged"], file["grades"]),
                notes=tuple(file["notes"].tolist()),
            )
    except Exception as error:  # numpy and zipfile raise different types for each kind of damage
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); remove {path.parent} and run again") from error
    if len(collection.query_ids) != len(collection.queries) or len(collection.document_ids) != len(
        collection.documents
    ):
        raise InputError(f"{path}: ids and items differ in number; remove {path.parent} and run again")
    return collection
