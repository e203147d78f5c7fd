"""Reads a retrieval dataset in BEIR's format: queries, a corpus, and judgements (qrels) with graded relevance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.errors import InputError
from vlm2vec.evaluation.data.items import Indices, ItemTableBuilder
from vlm2vec.evaluation.retrieval.image_cache import ImageCache
from vlm2vec.evaluation.retrieval.metrics import Relevance
from vlm2vec.evaluation.retrieval.tables import Row, column_of, find_files, read_rows, where
from vlm2vec.inputs.items import errors_of
from vlm2vec.item_rules import IMAGE_TAG

QUERIES, CORPUS, QRELS = "queries", "corpus", "qrels"
# Possible column names, in order of preference: MMEB-V2's and ViDoRe's, BEIR's, and others in use.
_QUERY_ID = ("query-id", "query_id", "_id", "id", "qid")
_DOCUMENT_ID = ("corpus-id", "corpus_id", "_id", "id", "docid", "doc_id", "doc-id")
_QUERY_TEXT = ("query", "text", "question")
_DOCUMENT_TEXT = ("text",)
_TITLE = "title"
_IMAGE = ("image", "image_path")
_GRADE = ("score", "relevance", "label")
_LANGUAGE = "language"
_ITEMS_AT_A_TIME = 1024


@dataclass(frozen=True)
class Side:
    """How one side of a collection becomes items.

    Attributes:
        instruction: See `PromptFormat.instructed`; "" for none.
        language: Use only rows whose column `language` has this value; None: all rows.
    """

    instruction: str = ""
    language: str | None = None


@dataclass(frozen=True)
class Collection:
    """A retrieval dataset; items are indices into the run's item table.

    Attributes:
        name: Name of the dataset.
        query_ids: Ids of the queries that have a relevant document, in the file's order.
        queries: Their items, int32 (queries,).
        document_ids: Ids of the corpus, in the file's order.
        documents: Their items, int32 (documents,).
        relevance: The judgements. A judged document that the corpus lacks has a place after the corpus: no ranked list
            can hold it, but the ideal list does (as trec_eval counts).
        notes: Notes for readers of the scores.
    """

    name: str
    query_ids: tuple[str, ...]
    queries: Indices
    document_ids: tuple[str, ...]
    documents: Indices
    relevance: Relevance
    notes: tuple[str, ...]


def read_collection(
    folder: Path,
    split: str,
    sides: tuple[Side, Side],
    prompt_format: PromptFormat,
    items: ItemTableBuilder,
    images: ImageCache,
) -> Collection:
    """Reads a collection and adds its items to `items`.

    Args:
        folder: Folder of the collection; its name becomes the collection's.
        split: Split of the files to read, if they are named after splits.
        sides: How queries and documents become items.
        prompt_format: Decides where an instruction goes.
        items: Receives the items.
        images: Receives the images.

    Raises:
        InputError: Files or columns are missing, a row is no item, an id occurs twice, a grade is no number, or no
            query has a relevant document; the message names file and row.
    """
    query_ids, queries = _read_items(folder, QUERIES, split, sides[0], prompt_format, items, images)
    document_ids, documents = _read_items(folder, CORPUS, split, sides[1], prompt_format, items, images)
    judged, ignored = _read_judgements(folder, split, query_ids)
    kept = [number for number, query_id in enumerate(query_ids) if judged.get(query_id)]
    if not kept:
        raise InputError(f"{folder}: no query has a relevant document; do {QRELS} and {QUERIES} belong together?")
    place_of = {document_id: place for place, document_id in enumerate(document_ids)}
    relevance, missing = _relevance([judged[query_ids[number]] for number in kept], place_of)
    return Collection(
        name=folder.resolve().name,
        query_ids=tuple(query_ids[number] for number in kept),
        queries=queries[kept],
        document_ids=tuple(document_ids),
        documents=documents,
        relevance=relevance,
        notes=_notes(len(query_ids) - len(kept), ignored, missing),
    )


def _read_items(
    folder: Path,
    part: str,
    split: str,
    side: Side,
    prompt_format: PromptFormat,
    items: ItemTableBuilder,
    images: ImageCache,
) -> tuple[list[str], Indices]:
    """Ids and items of the queries or of the corpus."""
    ids: dict[str, str] = {}
    found: list[Indices] = []
    _, own_instruction = prompt_format.instructed("x", 0, side.instruction)
    for path in find_files(folder, part, split):
        items.start_file(str(path), own_instruction or "")
        texts: list[str] = []
        paths: list[str] = []
        rows: list[int] = []
        for number, row in read_rows(path):
            place = where(path, number)
            if side.language is not None and _language(row, place) != side.language:
                continue
            with errors_of(place):
                text, image = _item(row, part, side.instruction, prompt_format, images)
                own_id = _id(row, _QUERY_ID if part == QUERIES else _DOCUMENT_ID)
                if own_id in ids:
                    raise InputError(f"id {own_id} is also that of {ids[own_id]}")
            ids[own_id] = place
            texts.append(text)
            paths.append(image)
            rows.append(number)
            if len(rows) == _ITEMS_AT_A_TIME:
                found.append(_add(items, texts, paths, rows))
                texts, paths, rows = [], [], []
        if rows:
            found.append(_add(items, texts, paths, rows))
    if not found:
        raise InputError(f"{folder}: no rows in {part}" + (f" of language {side.language}" if side.language else ""))
    return list(ids), np.concatenate(found)


def _add(items: ItemTableBuilder, texts: list[str], images: list[str], rows: list[int]) -> Indices:
    text_column, image_column = (pa.array(values, pa.large_string()) for values in (texts, images))
    return items.add(text_column, image_column, np.asarray(rows, dtype=np.int64))


def _item(row: Row, part: str, instruction: str, prompt_format: PromptFormat, images: ImageCache) -> tuple[str, str]:
    """A row's text, with tag and instruction, and its image's path ("" if none)."""
    text_name = column_of(row, _QUERY_TEXT if part == QUERIES else _DOCUMENT_TEXT)
    image_name = column_of(row, _IMAGE)
    if text_name is None and image_name is None:
        raise InputError(f"has neither a text nor an image column; the columns are {', '.join(row)}")
    text = _text(row[text_name], text_name) if text_name else ""
    title = _text(row[_TITLE], _TITLE) if part == CORPUS and _TITLE in row else ""
    text = f"{title} {text}".strip() if title else text  # as BEIR joins them
    text = IMAGE_TAG.sub("", text)
    image = images.add(row[image_name]) if image_name and row[image_name] else ""
    tagged, _ = prompt_format.instructed(text, 1 if image else 0, instruction)
    prompt_format.refuse_empty(text, 1 if image else 0)
    return tagged, image


def _text(value: Any, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"column {name} is {type(value).__name__}, not text")
    return value


def _id(row: Row, names: Sequence[str]) -> str:
    name = column_of(row, names)
    if name is None:
        raise InputError(f"no id: has none of the columns {', '.join(names)}; the columns are {', '.join(row)}")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise InputError(f"column {name} is {value!r}, not an id")
    return str(value)


def _language(row: Row, place: str) -> Any:
    if _LANGUAGE not in row:
        raise InputError(f"{place}: no column {_LANGUAGE}")
    return row[_LANGUAGE]


def _read_judgements(folder: Path, split: str, query_ids: Sequence[str]) -> tuple[dict[str, dict[str, float]], int]:
    """Grades above 0 by query and document, and the number of judgements of queries that are not scored."""
    judged: dict[str, dict[str, float]] = {query_id: {} for query_id in query_ids}
    ignored = 0
    for path in find_files(folder, QRELS, split):
        for number, row in read_rows(path):
            with errors_of(where(path, number)):
                query_id, document_id = _id(row, _QUERY_ID), _id(row, _DOCUMENT_ID)
                grade = _grade(row)
            if query_id not in judged:
                ignored += 1
            elif grade > 0:
                grades = judged[query_id]
                grades[document_id] = max(grade, grades.get(document_id, 0.0))
    return judged, ignored


def _grade(row: Row) -> float:
    name = column_of(row, _GRADE)
    if name is None:
        raise InputError(f"no grade: has none of the columns {', '.join(_GRADE)}; the columns are {', '.join(row)}")
    try:
        grade = float(row[name])
    except (TypeError, ValueError) as error:
        raise InputError(f"column {name} is {row[name]!r}, not a number") from error
    if not math.isfinite(grade):
        raise InputError(f"column {name} is {grade}, not a grade")
    return grade


def _relevance(judged: Sequence[Mapping[str, float]], place_of: Mapping[str, int]) -> tuple[Relevance, int]:
    """The judgements by places in the corpus, and the number of judgements of documents that it lacks."""
    unknown: dict[str, int] = {}
    documents: list[int] = []
    for grades in judged:
        for document_id in grades:
            place = place_of.get(document_id)
            if place is None:
                place = len(place_of) + unknown.setdefault(document_id, len(unknown))
            documents.append(place)
    offsets: npt.NDArray[np.int64] = np.cumsum([0, *map(len, judged)], dtype=np.int64)
    values = [grade for grades in judged for grade in grades.values()]
    missing = sum(document >= len(place_of) for document in documents)
    return Relevance(offsets, np.array(documents, dtype=np.int64), np.array(values, dtype=np.float64)), missing


def _notes(unjudged: int, ignored: int, missing: int) -> tuple[str, ...]:
    notes = []
    if unjudged:
        notes.append(f"{unjudged:,} queries without a relevant document are left out")
    if ignored:
        notes.append(f"{ignored:,} judgements of queries that are not scored are left out")
    if missing:
        notes.append(f"{missing:,} judgements name documents that are not in the corpus, and count as not found")
    return tuple(notes)
