"""`python -m eval.mmeb`: scores a model on the datasets of MMEB-eval, or of any folder in its layout."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.arguments import DataArguments, parse_arguments
from eval.datasets import EvalRows, ItemTable, check_images, find_datasets, read_dataset, resolve_datasets
from eval.encoding import Encoder, encode_items
from eval.model import describe_model, load_encoder, resolve_model
from eval.progress import progress_bar
from eval.results import prepare_output, write_run
from eval.scoring import score_rows
from eval.summary import recognise, select, summarise
from vlm2vec.errors import run_program
from vlm2vec.mmeb import Benchmark


@dataclass(frozen=True)
class EvalData:
    """What a run scores: the datasets, their unique items, and the benchmark they belong to (None: none known)."""

    datasets: tuple[EvalRows, ...]
    items: ItemTable
    benchmark: Benchmark | None


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, read, load, evaluate; whatever is wrong with the data shows before the model is loaded."""
    model_arguments, data_arguments = parse_arguments(argv)
    folders = resolve_model(model_arguments)
    data = read_data(data_arguments)
    prepare_output(Path(data_arguments.encode_output_path))
    num_rows = sum(len(rows) for rows in data.datasets)
    print(f"{len(data.datasets)} datasets, {num_rows:,} rows, {len(data.items):,} unique items to encode", flush=True)
    encoder = load_encoder(folders, model_arguments)
    summary = evaluate(encoder, describe_model(encoder, folders, model_arguments), data, data_arguments)
    _print_scores(summary, data_arguments.encode_output_path)


def read_data(arguments: DataArguments) -> EvalData:
    """Reads the selected datasets and checks that their pictures exist.

    Raises:
        InputError: see `eval.datasets` and `eval.summary.select`.
    """
    found = find_datasets(resolve_datasets(arguments.dataset_name, arguments.dataset_split), arguments.dataset_split)
    benchmark = recognise(found)
    names, absent = select(arguments.subset_name, found, benchmark)
    if absent:
        some = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        print(f"note: {arguments.dataset_name} lacks {len(absent)} of the selected datasets: {some}", flush=True)
    items = ItemTable()
    datasets = []
    with progress_bar(len(names), "read", "dataset") as progress:
        for name in names:
            datasets.append(read_dataset(name, found[name], items))
            progress.update()
    check_images(items, Path(arguments.image_dir))
    return EvalData(tuple(datasets), items, benchmark)


def evaluate(encoder: Encoder, model: Mapping[str, Any], data: EvalData, arguments: DataArguments) -> dict[str, Any]:
    """Encodes all items once, scores every dataset and writes the run's files.

    Nothing is written before everything is scored; `scores.json` comes last.

    Args:
        encoder: `VLM2Vec`, or anything with its `encode`.
        model: the model's identity, recorded as it is.

    Returns:
        The content of `scores.json`.
    """
    vectors = encode_items(encoder, data.items, Path(arguments.image_dir), arguments.per_device_eval_batch_size)
    scored = {}
    with progress_bar(len(data.datasets), "score", "dataset") as progress:
        for rows in data.datasets:
            scored[rows.name] = score_rows(vectors, rows)
            progress.update()
    summary = {
        "model": dict(model),
        "dataset_split": arguments.dataset_split,
        "num_items": len(data.items),
        **summarise({name: score for name, (score, _) in scored.items()}, data.benchmark),
    }
    write_run(Path(arguments.encode_output_path), scored, data.items, summary)
    return summary


def _print_scores(summary: Mapping[str, Any], output: str) -> None:
    for name, score in summary["datasets"].items():
        counts = f"{score['num_correct']} of {score['num_pred']}"
        print(f"{name}: {100 * score['acc']:.1f} % ({counts}, chance {100 * score['chance']:.1f} %)")
    overall = summary["overall"]
    print(
        f"overall: {100 * overall['acc']:.1f} % over {overall['num_datasets']} datasets; files in {output}", flush=True
    )


if __name__ == "__main__":
    sys.exit(run_program(main))
