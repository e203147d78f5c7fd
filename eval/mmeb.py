"""`python -m eval.mmeb`: scores a model on the datasets of MMEB-eval, or of any folder in its layout.

Any number of ranks, started by `deepspeed --module eval.mmeb` or `torchrun -m eval.mmeb`, writes the same files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm2vec.messages.progress import announce_imports

if __name__ == "__main__":
    announce_imports()

import torch

from eval.earlier import EMBEDDINGS_FOLDER, MODEL_SETTINGS, earlier_scores, refuse_other
from eval.encoding import encode_missing
from eval.invocation import Started, read_invocations
from eval.mmeb_flags import EncoderArguments, ScoringArguments, parse_arguments
from eval.model import (
    ModelFolders,
    describe_model,
    processor_of_run,
    recognised_format,
    resolve_model,
    use_settings,
)
from eval.results import prepare_output, write_run
from vlm2vec import __version__
from vlm2vec.device import device_of_rank
from vlm2vec.evaluation.data.datasets import EvalData, read_data
from vlm2vec.evaluation.data.digests import data_digests
from vlm2vec.evaluation.data.images import scan_images
from vlm2vec.evaluation.data.warnings import dataset_warnings
from vlm2vec.evaluation.encoding import collapse
from vlm2vec.evaluation.encoding_plan import EncodingPlan, plan_encoding
from vlm2vec.evaluation.naming import Thing, named_flags
from vlm2vec.evaluation.scoring import predictions_table, score_rows
from vlm2vec.evaluation.store import EvalStore
from vlm2vec.images.folder import ImageFolder, links_remedy
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.packing import default_batch_tokens
from vlm2vec.messages.progress import progress_bar
from vlm2vec.messages.words import counted
from vlm2vec.mmeb import Benchmark
from vlm2vec.ranks import host_ranks, on_every_rank, on_first_rank, own_rank, run_ranks_program, world_size

_KEY_DIGITS = 16
_FLAGS = {
    Thing.DATASET: "--dataset_name",
    Thing.SUBSET: "--subset_name",
    Thing.IMAGES: "--image_dir",
    Thing.BENCHMARK: "--benchmark",
}
_HASHED_ITEMS = 10_000


@dataclass(frozen=True)
class Setup:
    """The result of the preparation on rank 0, which all ranks use.

    Attributes:
        store: The folder with plan and vectors.
        folders, options, model: The model's files, settings (values of `EncoderArguments`) and identity.
        sources: For each dataset, where its rows come from, and their digest.
        benchmark: The benchmark to which the datasets belong.
        num_items: Number of distinct items over all datasets.
        blocks: The blocks that are still to be encoded.
        num_to_encode: Number of items in these blocks.
        warnings: Warnings about the data.
        adds: Whether the output folder already has scores, of the same model.
    """

    store: Path
    folders: ModelFolders
    options: Mapping[str, Any]
    model: Mapping[str, Any]
    sources: Mapping[str, Mapping[str, str]]
    benchmark: Benchmark | None
    num_items: int
    blocks: tuple[int, ...]
    num_to_encode: int
    warnings: tuple[str, ...]
    adds: bool

    @property
    def arguments(self) -> EncoderArguments:
        """The settings. Only their values are sent between ranks, because the parser derives a class of its own."""
        return EncoderArguments(**self.options)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, reads the data, encodes, ranks and writes. Data is checked before the model is loaded."""
    started = Started.now("eval.mmeb", argv)
    encoder_arguments, scoring = parse_arguments(argv)
    device = device_of_rank()
    with host_ranks():
        setup = on_first_rank(lambda: prepare(encoder_arguments, scoring, device), Setup)
        store = EvalStore(setup.store)
        if setup.blocks:
            on_every_rank(lambda: encode(setup, store, scoring, device), names_ranks=False)
        on_first_rank(lambda: store.assemble(store.plan()))
        missing = on_first_rank(lambda: store.missing_predictions(len(setup.sources), scoring.strict_original))
        on_every_rank(lambda: rank_datasets(missing, store, scoring.strict_original), names_ranks=False)
        on_first_rank(lambda: finish(setup, store, scoring))
        output = Path(scoring.encode_output_path)
        on_first_rank(lambda: started.record(output, device, setup.num_to_encode, setup.sources))


def prepare(encoder_arguments: EncoderArguments, scoring: ScoringArguments, device: torch.device) -> Setup:
    """Reads the datasets and images and plans the encoding; on rank 0.

    Raises:
        InputError: See `read_data`, `scan_images` and `plan_encoding`.
    """
    folders = resolve_model(encoder_arguments)
    encoder_arguments, differing = use_settings(encoder_arguments, folders)
    name = scoring.dataset_name
    split, benchmark = scoring.dataset_split, scoring.benchmark
    with named_flags(_FLAGS):
        data, absent = read_data(name, scoring.subset_name, split, benchmark)
    warnings = [f"scored with settings that differ from training: {name} {text}" for name, text in differing.items()]
    if absent:
        some = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        warnings.append(f"{name} lacks {len(absent)} of the selected datasets: {some}")
    with named_flags(_FLAGS), links_remedy("--allow_links"):
        images = scan_images(data.items, ImageFolder(scoring.image_dir, scoring.allow_links, scoring.num_frames))
    output = Path(scoring.encode_output_path)
    prepare_output(output)
    read_invocations(output)  # a damaged file is refused before the work, not behind it
    processor = processor_of_run(encoder_arguments, folders)
    if line := recognised_format(encoder_arguments, folders, processor):
        print(line, flush=True)
    plan = plan_encoding(
        data.items,
        images,
        ItemEncoderInputs(processor, encoder_arguments.max_len),
        scoring.batch_tokens or default_batch_tokens(device),
        scoring.per_device_eval_batch_size,
    )
    model = describe_model(encoder_arguments, folders, processor)
    place = {
        "dataset_split": scoring.dataset_split,
        "image_dir": str(Path(scoring.image_dir).resolve()),
    }
    sources = {name: {"data": digest, **place} for name, digest in data_digests(data, images).items()}
    earlier = earlier_scores(output, sources)
    if earlier is not None:
        about = {"model": model, "strict_original": scoring.strict_original}
        refuse_other(output, earlier, about, sources, data.benchmark)
    store = EvalStore(output / EMBEDDINGS_FOLDER / store_key(model, data, plan, device))
    store.write_data(data, plan)
    warnings += [line for rows in data.datasets for line in dataset_warnings(rows, plan.position, data.benchmark)]
    blocks = tuple(store.missing_blocks(plan))
    num_to_encode = sum(len(plan.rows(batch)) for number in blocks for batch in plan.blocks()[number])
    _announce(data, plan, num_to_encode, warnings)
    return Setup(
        store=store.folder,
        folders=folders,
        options=dataclasses.asdict(encoder_arguments),
        model=model,
        sources=sources,
        benchmark=data.benchmark,
        num_items=len(plan.order),
        blocks=blocks,
        num_to_encode=num_to_encode,
        warnings=tuple(warnings),
        adds=earlier is not None,
    )


def store_key(model: Mapping[str, Any], data: EvalData, plan: EncodingPlan, device: torch.device) -> str:
    """A hash of everything that decides vectors and ranks: weights, processor settings, items, rows; no names."""
    digest = hashlib.sha256(plan.digest.encode())
    settings = [model.get(name) for name in MODEL_SETTINGS]
    digest.update(repr([__version__, device.type, *settings]).encode())
    for rows in data.datasets:
        for part in (plan.position[rows.queries], plan.position[rows.candidates], rows.offsets):
            digest.update(part.tobytes())
        digest.update(rows.name.encode())
    # Paths are not part of an item, but they are part of the predictions.
    for batch in data.items.columns.select(["text", "image"]).to_batches(max_chunksize=_HASHED_ITEMS):
        digest.update(repr(batch.to_pydict()).encode())
    return digest.hexdigest()[:_KEY_DIGITS]


def encode(setup: Setup, store: EvalStore, scoring: ScoringArguments, device: torch.device) -> None:
    """Encodes this rank's share of the missing blocks, which are distributed by their tokens.

    Raises:
        InputError: The model cannot be loaded, or an image can no longer be decoded.
    """
    images = ImageFolder(scoring.image_dir, scoring.allow_links, scoring.num_frames)
    workers = scoring.dataloader_num_workers
    encode_missing(setup.folders, setup.arguments, store, setup.blocks, images, device, workers)


def rank_datasets(missing: Sequence[int], store: EvalStore, strict_original: bool) -> None:
    """Ranks the candidates of this rank's share of the datasets.

    Args:
        missing: Numbers of the datasets without predictions, the same on all ranks.
        store: Contains the vectors, and receives the predictions.
        strict_original: The value of the flag of that name.
    """
    own = missing[own_rank() :: world_size()]
    vectors, position, items = store.vectors(), store.plan().position, store.items()
    with progress_bar(len(own), "score", "dataset") as progress:
        for number in own:
            rows = store.rows(number)
            scores = score_rows(vectors, position, rows, strict_original)
            store.write_predictions(number, strict_original, predictions_table(rows, scores, items))
            progress.update()


def finish(setup: Setup, store: EvalStore, arguments: ScoringArguments) -> None:
    """Writes the run's files and prints its scores; on rank 0."""
    warnings = list(setup.warnings)
    collapsed = collapse(store.vectors())
    if collapsed:
        warnings.append(collapsed)
        print(f"warning: {collapsed}", flush=True)
    parts = {
        name: store.predictions_file(number, arguments.strict_original) for number, name in enumerate(setup.sources)
    }
    about = {
        "model": dict(setup.model),
        "dataset_split": arguments.dataset_split,
        "image_dir": next(iter(setup.sources.values()))["image_dir"],
        "strict_original": arguments.strict_original,
        "num_items": setup.num_items,
        "warnings": warnings,
    }
    summary = write_run(Path(arguments.encode_output_path), parts, about, setup.sources, setup.benchmark)
    for other in store.folder.parent.glob("[0-9a-f]" * _KEY_DIGITS):
        if other != store.folder and not setup.adds:  # the store of a run that never wrote scores
            shutil.rmtree(other)
    _print_scores(summary, arguments.encode_output_path)


def _announce(data: EvalData, plan: EncodingPlan, num_to_encode: int, warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", flush=True)
    num_rows = sum(len(rows) for rows in data.datasets)
    print(
        f"{counted(len(data.datasets), 'dataset')}, {counted(num_rows, 'row')}, "
        f"{counted(len(plan.order), 'unique item')}, "
        f"{num_to_encode:,} of them to encode",
        flush=True,
    )


def _print_scores(summary: Mapping[str, Any], output: str) -> None:
    for name, score in summary["datasets"].items():
        counts = f"{score['num_correct']} of {score['num_pred']}"
        print(f"{name}: {100 * score['acc']:.1f} % ({counts}, chance {100 * score['chance']:.1f} %)")
    overall = summary["overall"]
    low, high = (100 * bound for bound in overall["acc_interval"])
    print(
        f"overall: {100 * overall['acc']:.1f} % (95 % interval {low:.1f} to {high:.1f}) over "
        f"{counted(overall['num_datasets'], 'dataset')}; files in {output}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(run_ranks_program(main))
