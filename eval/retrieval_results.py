"""Writes the files of a retrieval run: metrics with intervals, ranked lists in TREC's format, score files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.results import write_text
from vlm2vec.errors import InputError
from vlm2vec.evaluation.retrieval.collection import Collection
from vlm2vec.evaluation.retrieval.metrics import CUTOFFS, RankedLists, Scores, mean_with_interval
from vlm2vec.evaluation.retrieval.nearest import Places, Vectors
from vlm2vec.evaluation.retrieval.ranking import RankedBlocks
from vlm2vec.files import committed
from vlm2vec.formats.json_files import with_checksum
from vlm2vec.messages.words import counted
from vlm2vec.mmeb_v2 import VISDOC_METRIC, VISDOC_SETS

RETRIEVAL_FILE = "retrieval.json"
RUN_TAG = "vlm2vec"
_SHOWN = (VISDOC_METRIC, "ndcg_linear@10", "hit@1", "recall@10")


def write_results(
    output: Path,
    collections: Sequence[Collection],
    groups: Sequence[str],
    ranked: RankedBlocks,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes `NAME.trec` and `NAME_score.json` of every collection, and `retrieval.json` last.

    Args:
        output: The run's folder.
        collections: The scored collections.
        groups: For each, its group of MMEB-V2 ("": none).
        ranked: Their ranked lists.
        about: The run's part of `retrieval.json`.

    Returns:
        The content of `retrieval.json`.

    Raises:
        InputError: A file cannot be written, or a ranked list cannot be read.
    """
    scores: dict[str, Any] = {}
    for number, (collection, group) in enumerate(zip(collections, groups, strict=True)):
        places, similarities = ranked.read(number, collection)
        corpus_size = max(len(collection.document_ids), int(collection.relevance.documents.max()) + 1)
        lists = RankedLists(places, collection.relevance, corpus_size)
        values = query_metrics(lists, ranked.depth)
        _write_trec(output / f"{collection.name}.trec", collection, places, similarities)
        original = {name: math.fsum(each) / len(each) for name, each in original_metrics(lists).items()}
        counts = {"num_pred": len(collection.queries), "num_data": len(collection.queries)}
        write_text(output / f"{collection.name}_score.json", json.dumps({**original, **counts}, indent=4) + "\n")
        scores[collection.name] = {
            "group": group or None,
            "num_queries": len(collection.queries),
            "num_documents": len(collection.documents),
            "num_judgements": len(collection.relevance.documents),
            "metrics": {name: _with_interval(each) for name, each in values.items()},
        }
    summary = {**about, "collections": scores, "groups": _means(scores)}
    write_text(output / RETRIEVAL_FILE, json.dumps(with_checksum(summary), indent=2, ensure_ascii=False) + "\n")
    return summary


def query_metrics(lists: RankedLists, depth: int) -> dict[str, Scores]:
    """Every query's metrics, by name.

    Args:
        lists: The ranked lists of a collection.
        depth: Number of documents per list, at least the largest cutoff.
    """
    values: dict[str, Scores] = {}
    for cutoff in CUTOFFS:
        values[f"ndcg_linear@{cutoff}"] = lists.ndcg(cutoff)
        values[f"ndcg_exponential@{cutoff}"] = lists.ndcg(cutoff, "exponential")
        values[f"hit@{cutoff}"] = lists.hit(cutoff)
    for cutoff in sorted({*CUTOFFS, depth}):
        values[f"recall@{cutoff}"] = lists.recall(cutoff)
    values[f"mrr@{depth}"] = lists.reciprocal_rank(depth)
    values[f"map@{depth}"] = lists.average_precision(depth)
    return values


def original_metrics(lists: RankedLists) -> dict[str, Scores]:
    """Every query's metrics under the names, and by the definitions, of the original's score files."""
    values: dict[str, Scores] = {}
    for cutoff in CUTOFFS:
        precision, recall = lists.precision(cutoff), lists.recall(cutoff)
        total = precision + recall
        values |= {
            f"ndcg_linear@{cutoff}": lists.ndcg(cutoff),
            f"ndcg_exponential@{cutoff}": lists.ndcg(cutoff, "exponential"),
            f"hit@{cutoff}": lists.hit(cutoff),
            f"precision@{cutoff}": precision,
            f"recall@{cutoff}": recall,
            f"f1@{cutoff}": np.divide(2 * precision * recall, total, out=np.zeros(len(total)), where=total > 0),
            f"map@{cutoff}": lists.average_precision(cutoff, "reachable"),
            f"mrr@{cutoff}": lists.reciprocal_rank(cutoff),
        }
    return values


def print_scores(summary: Mapping[str, Any], output: Path) -> None:
    """Prints each collection's main metrics, and the groups' means."""
    for name, score in summary["collections"].items():
        shown = ", ".join(f"{metric} {100 * score['metrics'][metric]['mean']:.1f}" for metric in _SHOWN)
        low, high = (100 * bound for bound in score["metrics"][_SHOWN[0]]["interval"])
        print(
            f"{name}: {shown} (95 % interval of {_SHOWN[0]} {low:.1f} to {high:.1f}); "
            f"{counted(score['num_queries'], 'query', 'queries')}, {counted(score['num_documents'], 'document')}"
        )
    for name, group in summary["groups"].items():
        size = f"{group['num_collections']} of {group['num_collections_of_benchmark']}"
        print(f"{name} (mean of {size}): {VISDOC_METRIC} {100 * group[VISDOC_METRIC]:.1f}")
    print(f"files in {output}", flush=True)


def _with_interval(values: Scores) -> dict[str, Any]:
    mean, interval = mean_with_interval(values)
    return {"mean": mean, "interval": list(interval)}


def _means(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Means of the main metric over MMEB-V2's groups, and over all its visual document datasets."""
    means: dict[str, Any] = {}
    of_group = {each.name: (each.group, "visdoc") for each in VISDOC_SETS}
    for group in dict.fromkeys(group for name in scores for group in of_group.get(name, ())):
        members = [name for name in scores if group in of_group.get(name, ())]
        values = [scores[name]["metrics"][VISDOC_METRIC]["mean"] for name in members]
        means[group] = {
            VISDOC_METRIC: math.fsum(values) / len(values),
            "num_collections": len(values),
            "num_collections_of_benchmark": sum(group in groups for groups in of_group.values()),
        }
    return means


def _write_trec(path: Path, collection: Collection, places: Places, scores: Vectors) -> None:
    """Writes one line per document of a list: query, Q0, document, rank, score, tag. Equal scores keep their order."""
    try:
        with committed(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for query_id, own_places, own_scores in zip(collection.query_ids, places, scores, strict=True):
                for place, (document, score) in enumerate(zip(own_places.tolist(), own_scores.tolist(), strict=True)):
                    if document >= 0:
                        document_id = collection.document_ids[document]
                        file.write(f"{_token(query_id)} Q0 {_token(document_id)} {place + 1} {score:.9g} {RUN_TAG}\n")
    except OSError as error:
        raise InputError(f"{path}: cannot write it ({error.strerror or error})") from error


def _token(name: str) -> str:
    """An id as one word, because trec_eval splits lines at white space."""
    return "_".join(name.split()) or "_"
