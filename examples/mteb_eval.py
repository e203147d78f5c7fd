"""Scores an exported model with the mteb package (pip install '.[mteb]'), through sentence-transformers.

    python examples/mteb_eval.py --model_name DIR --collection FOLDER [--query_instruction TEXT] [--output FILE]
    python examples/mteb_eval.py --model_name DIR --tasks Vidore2ESGReportsRetrieval

DIR is a folder that vlm2vec.export wrote. FOLDER is a collection in BEIR's form (docs/retrieval.md): MTEB then scores a
local task that is made of it, offline. `--tasks` names tasks of MTEB's own, whose data MTEB downloads.

Instructions go where the checkpoint's prompt format has them, or hold the item's own text as {text}
(`VLM2Vec.encode_queries`). Vectors are those of VLM2Vec.encode; MTEB holds a collection in memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mteb
from datasets import Dataset, Features, Image, Value
from mteb.abstasks import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer

from vlm2vec.errors import InputError, run_program
from vlm2vec.evaluation.retrieval.tables import Row, column_of, find_files, read_rows, where
from vlm2vec.images.decode import read_header
from vlm2vec.images.folder import ImageFolder
from vlm2vec.inputs.items import errors_of
from vlm2vec.messages.command_line import Parser

_IDS = {"queries": ("query-id", "_id", "id"), "corpus": ("corpus-id", "_id", "id")}
_TEXTS = {"queries": ("query", "text"), "corpus": ("text",)}


def local_task(folder: Path, split: str) -> AbsTaskRetrieval:
    """A retrieval task of MTEB's made of a collection's files.

    Raises:
        InputError: No such collection, a bad row, or items of which some have an image, or a text, and others none.
    """
    parts = {part: _items(folder, part, split) for part in ("queries", "corpus")}
    judged = _judgements(folder, split)
    left_out = sum(name not in judged for name in parts["queries"]["id"])
    if left_out == len(parts["queries"]):
        raise InputError(f"{folder}: no query has a relevant document")
    if left_out:
        print(f"{left_out} queries without a relevant document are left out", file=sys.stderr)
    category: Any = f"{_letters(parts['queries'])}2{_letters(parts['corpus'])}"

    class LocalRetrieval(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=folder.resolve().name,
            description=f"The collection {folder}.",
            dataset={"path": str(folder), "revision": "local"},
            type="Any2AnyRetrieval",
            category=category,
            modalities=sorted({column for data in parts.values() for column in data.column_names} & {"text", "image"}),
            eval_splits=[split],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_5",
        )

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            """Called by MTEB; nothing is downloaded."""
            self.queries, self.corpus = {split: parts["queries"]}, {split: parts["corpus"]}
            self.relevant_docs = {split: judged}
            self.data_loaded = True

    return LocalRetrieval()


def evaluate(
    model: SentenceTransformer, tasks: Sequence[AbsTask], predictions: Path | None = None
) -> dict[str, dict[str, float]]:
    """MTEB's scores.

    Args:
        model: An exported folder, loaded; its `prompts` named "query" and "document" are the instructions.
        tasks: To score.
        predictions: Folder for MTEB's files of every query's scores; None: none are written.

    Returns:
        By task, its metrics (means over a task's splits and subsets).
    """
    encoder = SentenceTransformerEncoderWrapper(model)
    # MTEB takes every model for one of texts alone.
    encoder.mteb_model_meta = encoder.mteb_model_meta.model_copy(update={"modalities": ["text", "image"]})
    results = mteb.evaluate(
        encoder, tasks, cache=None, co2_tracker=False, prediction_folder=predictions, show_progress_bar=False
    )
    scores = {}
    for result in results.task_results:
        listed = [entry for split in result.scores.values() for entry in split]
        names = [name for name, value in listed[0].items() if isinstance(value, (int, float))]
        scores[result.task_name] = {name: sum(entry[name] for entry in listed) / len(listed) for name in names}
    return scores


def _items(folder: Path, part: str, split: str) -> Dataset:
    """Queries or corpus with the columns id, and text, image or both."""
    images = ImageFolder(folder)
    columns: dict[str, list[Any]] = {"id": [], "text": [], "image": []}
    for path in find_files(folder, part, split):
        for number, row in read_rows(path):
            with errors_of(where(path, number)):
                name, text = column_of(row, _IDS[part]), column_of(row, _TEXTS[part])
                if name is None:
                    raise InputError(f"no id: none of the columns {', '.join(_IDS[part])}")
                columns["id"].append(str(row[name]))
                words = [row.get("title") or "" if part == "corpus" else "", row[text] or "" if text else ""]
                columns["text"].append(" ".join(words).strip())
                columns["image"].append(_image(row, images, where(path, number)))
    if len(set(columns["id"])) < len(columns["id"]):
        twice = next(name for place, name in enumerate(columns["id"]) if name in columns["id"][:place])
        raise InputError(f"{folder}: the id {twice!r} of {part} occurs twice")
    features = {"id": Value("string"), "text": Value("string"), "image": Image()}
    for column in ("text", "image"):
        if not any(columns[column]):
            del columns[column], features[column]
        elif not all(columns[column]):
            missing = columns["id"][[bool(value) for value in columns[column]].index(False)]
            raise InputError(f"{folder}: {missing!r} of {part} has no {column}, others have; MTEB needs all or none")
    return Dataset.from_dict(columns, features=Features(features))


def _judgements(folder: Path, split: str) -> dict[str, dict[str, int]]:
    """By query, its relevant documents with their grades."""
    judged: dict[str, dict[str, int]] = {}
    for path in find_files(folder, "qrels", split):
        for number, row in read_rows(path):
            try:
                query, document, grade = str(row["query-id"]), str(row["corpus-id"]), int(row["score"])
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{where(path, number)}: expected query-id, corpus-id and an integer score, not {dict(row)}"
                ) from error
            if grade > 0:
                documents = judged.setdefault(query, {})
                documents[document] = max(grade, documents.get(document, 0))
    return judged


def _image(row: Row, images: ImageFolder, name: str) -> dict[str, Any] | None:
    value = row.get("image")
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not value:
        return None
    data = value if isinstance(value, bytes) else images.read(value)
    read_header(data, name)  # a format that is read here, and no more pixels than anywhere
    return {"bytes": data, "path": None}


def _letters(data: Dataset) -> str:
    return "".join(letter for column, letter in (("image", "i"), ("text", "t")) if column in data.column_names)


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python examples/mteb_eval.py",
        description="Scores an exported model with MTEB.",
        examples=("python examples/mteb_eval.py --model_name demo/exported --collection demo/mini/visdoc/slides",),
    )
    made.add_argument("--model_name", required=True, metavar="DIR", help="Folder that vlm2vec.export wrote.")
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--collection", metavar="DIR", help="Folder with queries, corpus and qrels.")
    what.add_argument("--tasks", nargs="+", metavar="NAME", help="Tasks of MTEB, which are downloaded.")
    made.add_argument("--split", metavar="NAME", help="Split of the collection. If not given: test.")
    made.add_argument("--query_instruction", default="", help="Instruction of every query; it may contain {text}.")
    made.add_argument(
        "--document_instruction", default="", help="Instruction of every document; it may contain {text}."
    )
    made.add_argument("--output", metavar="FILE", help="JSON file for all metrics.")
    return made


def main() -> None:
    """Parses the command line, scores, prints, writes."""
    arguments = parser().parse_args()
    if arguments.tasks and arguments.split:
        raise InputError("--split is for --collection; MTEB's own tasks have theirs")
    if not (Path(arguments.model_name) / "modules.json").is_file():
        raise InputError(f"{arguments.model_name}: no modules.json; vlm2vec.export writes folders that have one")
    if arguments.output and not Path(arguments.output).absolute().parent.is_dir():
        raise InputError(f"--output {arguments.output}: there is no such folder")
    if arguments.collection:
        tasks: Sequence[AbsTask] = [local_task(Path(arguments.collection), arguments.split or "test")]
    else:
        tasks = list(mteb.get_tasks(tasks=arguments.tasks))
    prompts = {"query": arguments.query_instruction, "document": arguments.document_instruction}
    model = SentenceTransformer(arguments.model_name, trust_remote_code=True, prompts=prompts)
    scores = evaluate(model, tasks)
    for name, metrics in scores.items():
        print(f"{name}: nDCG@5 {metrics['ndcg_at_5']:.4f}, main score {metrics['main_score']:.4f}")
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_program(main))
