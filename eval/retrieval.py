"""`python -m eval.retrieval`: scores a model on retrieval collections, such as BEIR's and MMEB-V2's visual documents.

Any number of ranks, started by `deepspeed --module eval.retrieval` or `torchrun -m eval.retrieval`, writes the same
files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm2vec.messages.progress import announce_imports

if __name__ == "__main__":
    announce_imports()

import torch

from eval.collections import FoundCollection, find_collections
from eval.earlier import EMBEDDINGS_FOLDER, MODEL_SETTINGS
from eval.encoding import encode_missing
from eval.invocation import Started, read_invocations
from eval.mmeb_flags import EncoderArguments
from eval.model import (
    ModelFolders,
    describe_model,
    processor_of_run,
    recognised_format,
    resolve_model,
    use_settings,
)
from eval.results import prepare_output
from eval.retrieval_flags import RetrievalArguments, parse_arguments
from eval.retrieval_results import print_scores, write_results
from vlm2vec import __version__
from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.device import device_of_rank
from vlm2vec.evaluation.data.datasets import EvalData
from vlm2vec.evaluation.data.images import scan_images
from vlm2vec.evaluation.data.items import ItemTable, ItemTableBuilder
from vlm2vec.evaluation.encoding import collapse
from vlm2vec.evaluation.encoding_plan import EncodingPlan, plan_encoding
from vlm2vec.evaluation.naming import Thing, named_flags
from vlm2vec.evaluation.retrieval.collection import Collection, Side, read_collection
from vlm2vec.evaluation.retrieval.collection_file import read_stored_collection, write_collection
from vlm2vec.evaluation.retrieval.image_cache import ImageCache
from vlm2vec.evaluation.retrieval.ranking import RankedBlocks
from vlm2vec.evaluation.store import EvalStore
from vlm2vec.images.folder import ImageFolder, links_remedy
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.packing import default_batch_tokens
from vlm2vec.messages.words import counted
from vlm2vec.mmeb_v2 import PAGE_INSTRUCTION, QUERY_INSTRUCTION
from vlm2vec.ranks import host_ranks, on_every_rank, on_first_rank, own_rank, run_ranks_program, world_size

IMAGES_FOLDER = "images"
_KEY_DIGITS = 16
_HASHED_ITEMS = 10_000
_FLAGS = {Thing.IMAGES: "--image_dir"}


@dataclass(frozen=True)
class Setup:
    """The result of the preparation on rank 0, which all ranks use.

    Attributes:
        store: The folder with plan and vectors.
        folders, options, model: The model's files, settings (values of `EncoderArguments`) and identity.
        names, groups: The collections' names, and the groups of MMEB-V2 to which they belong ("": none).
        blocks: The blocks that are still to be encoded.
        num_to_encode: Number of items in these blocks.
        warnings: Warnings about the data and the settings.
    """

    store: Path
    folders: ModelFolders
    options: Mapping[str, Any]
    model: Mapping[str, Any]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    blocks: tuple[int, ...]
    num_to_encode: int
    warnings: tuple[str, ...]

    @property
    def arguments(self) -> EncoderArguments:
        """The settings. Only their values are sent between ranks, because the parser derives a class of its own."""
        return EncoderArguments(**self.options)

    def collections(self) -> list[Collection]:
        """Reads the collections from the store."""
        return [read_stored_collection(_collection_file(self.store, number)) for number in range(len(self.names))]


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, reads the data, encodes, ranks and writes. Data is checked before the model is loaded."""
    started = Started.now("eval.retrieval", argv)
    encoder_arguments, arguments = parse_arguments(argv)
    device = device_of_rank()
    with host_ranks():
        setup = on_first_rank(lambda: prepare(encoder_arguments, arguments, device), Setup)
        store = EvalStore(setup.store)
        if setup.blocks:
            on_every_rank(lambda: encode(setup, store, arguments, device), names_ranks=False)
        on_first_rank(lambda: store.assemble(store.plan()))
        ranked = RankedBlocks(setup.store, arguments.top_k, arguments.skip_own_id)
        missing = on_first_rank(lambda: ranked.missing(setup.collections()), list[tuple[int, int]])
        if missing:
            on_every_rank(lambda: rank(missing, ranked, setup, store), names_ranks=False)
        on_first_rank(lambda: finish(setup, store, ranked, arguments))
        output = Path(arguments.encode_output_path)
        on_first_rank(lambda: started.record(output, device, setup.num_to_encode, setup.names))


def prepare(encoder_arguments: EncoderArguments, arguments: RetrievalArguments, device: torch.device) -> Setup:
    """Reads the collections and their images and plans the encoding; on rank 0.

    Raises:
        InputError: See `find_collections`, `read_collection`, `scan_images` and `plan_encoding`.
    """
    folders = resolve_model(encoder_arguments)
    encoder_arguments, differing = use_settings(encoder_arguments, folders)
    found = find_collections(arguments.dataset_name, arguments.subset_name)
    output = Path(arguments.encode_output_path)
    prepare_output(output)
    read_invocations(output)  # a damaged file is refused before the work, not behind it
    processor = processor_of_run(encoder_arguments, folders)
    if line := recognised_format(encoder_arguments, folders, processor):
        print(line, flush=True)
    collections, items = read_collections(found, arguments, processor.prompt_format, output / IMAGES_FOLDER)
    with named_flags(_FLAGS):
        images = scan_images(items, _cached_images(output, arguments.num_frames))
    plan = plan_encoding(
        items,
        images,
        ItemEncoderInputs(processor, encoder_arguments.max_len),
        arguments.batch_tokens or default_batch_tokens(device),
        arguments.per_device_eval_batch_size,
    )
    model = describe_model(encoder_arguments, folders, processor)
    store = EvalStore(output / EMBEDDINGS_FOLDER / _store_key(model, collections, items, plan, device))
    store.write_data(EvalData((), items, None), plan)
    for number, collection in enumerate(collections):
        write_collection(_collection_file(store.folder, number), collection)
    blocks = tuple(store.missing_blocks(plan))
    num_to_encode = sum(len(plan.rows(batch)) for number in blocks for batch in plan.blocks()[number])
    warnings = [f"scored with settings that differ from training: {name} {text}" for name, text in differing.items()]
    warnings += [f"{collection.name}: {note}" for collection in collections for note in collection.notes]
    _announce(collections, plan, num_to_encode, warnings)
    return Setup(
        store=store.folder,
        folders=folders,
        options=dataclasses.asdict(encoder_arguments),
        model=model,
        names=tuple(collection.name for collection in collections),
        groups=tuple(each.known.group if each.known else "" for each in found),
        blocks=blocks,
        num_to_encode=num_to_encode,
        warnings=tuple(warnings),
    )


def read_collections(
    found: Sequence[FoundCollection], arguments: RetrievalArguments, prompt_format: PromptFormat, cache: Path
) -> tuple[list[Collection], ItemTable]:
    """Reads the collections, and makes the table of all their items.

    Args:
        found: The collections' folders.
        arguments: Split, instructions and language; where absent, those of MMEB-V2 apply to its datasets.
        prompt_format: The model's prompt format.
        cache: The folder for images.

    Raises:
        InputError: See `read_collection`.
    """
    builder = ItemTableBuilder()
    collections = []
    for each in found:
        defaults = (QUERY_INSTRUCTION, PAGE_INSTRUCTION) if each.known else ("", "")
        given = (arguments.query_instruction, arguments.document_instruction)
        own = [default if value is None else value for value, default in zip(given, defaults, strict=True)]
        split = arguments.dataset_split or (each.known.split if each.known else "test")
        with links_remedy("--allow_links"):
            source = ImageFolder(arguments.image_dir or each.folder, arguments.allow_links, arguments.num_frames)
            sides = (Side(own[0], arguments.language), Side(own[1]))
            images = ImageCache(cache, source)
            collection = read_collection(each.folder, split, sides, prompt_format, builder, images)
        collections.append(dataclasses.replace(collection, name=each.name))
    return collections, builder.build()


def encode(setup: Setup, store: EvalStore, arguments: RetrievalArguments, device: torch.device) -> None:
    """Encodes this rank's share of the missing blocks."""
    images = _cached_images(Path(arguments.encode_output_path), arguments.num_frames)
    workers = arguments.dataloader_num_workers
    encode_missing(setup.folders, setup.arguments, store, setup.blocks, images, device, workers)


def rank(missing: Sequence[tuple[int, int]], ranked: RankedBlocks, setup: Setup, store: EvalStore) -> None:
    """Ranks this rank's share of the blocks of queries."""
    own = missing[own_rank() :: world_size()]
    ranked.rank(own, setup.collections(), store.vectors(), store.plan().position)


def finish(setup: Setup, store: EvalStore, ranked: RankedBlocks, arguments: RetrievalArguments) -> None:
    """Writes the run's files and prints its scores; on rank 0."""
    warnings = list(setup.warnings)
    if collapsed := collapse(store.vectors()):
        warnings.append(collapsed)
        print(f"warning: {collapsed}", flush=True)
    about = {"model": dict(setup.model), "top_k": arguments.top_k, "warnings": warnings}
    output = Path(arguments.encode_output_path)
    summary = write_results(output, setup.collections(), setup.groups, ranked, about)
    print_scores(summary, output)


def _cached_images(output: Path, num_frames: int | None) -> ImageFolder:
    """Opens the cache's images. This program made the links in it, to files that it had checked."""
    (output / IMAGES_FOLDER).mkdir(exist_ok=True)
    return ImageFolder(output / IMAGES_FOLDER, allow_links=True, num_frames=num_frames)


def _collection_file(store: Path, number: int) -> Path:
    return store / f"collection-{number:05d}.npz"


def _store_key(
    model: Mapping[str, Any],
    collections: Sequence[Collection],
    items: ItemTable,
    plan: EncodingPlan,
    device: torch.device,
) -> str:
    """A hash of everything that decides vectors and ranked lists: weights, settings, items and collections."""
    digest = hashlib.sha256(plan.digest.encode())
    digest.update(repr([__version__, device.type, *(model.get(name) for name in MODEL_SETTINGS)]).encode())
    for collection in collections:
        for part in (plan.position[collection.queries], plan.position[collection.documents]):
            digest.update(len(part).to_bytes(8, "little") + part.tobytes())
        digest.update(repr((collection.query_ids, collection.document_ids)).encode())
    for batch in items.columns.select(["text", "image"]).to_batches(max_chunksize=_HASHED_ITEMS):
        digest.update(repr(batch.to_pydict()).encode())
    return digest.hexdigest()[:_KEY_DIGITS]


def _announce(
    collections: Sequence[Collection], plan: EncodingPlan, num_to_encode: int, warnings: Sequence[str]
) -> None:
    for warning in warnings:
        print(f"warning: {warning}", flush=True)
    print(
        f"{counted(len(collections), 'collection')}, "
        f"{counted(sum(len(each.queries) for each in collections), 'query', 'queries')}, "
        f"{counted(sum(len(each.documents) for each in collections), 'document')}, "
        f"{counted(len(plan.order), 'unique item')}, {num_to_encode:,} of them to encode",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(run_ranks_program(main))
