"""The options of `python -m eval.retrieval`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from eval.mmeb_flags import EncoderArguments, EncodingArguments, at_least_one, flag, parse_groups, parser_of
from vlm2vec.errors import InputError
from vlm2vec.evaluation.retrieval.metrics import CUTOFFS
from vlm2vec.messages.dataclass_parser import DataclassParser


@dataclass
class _CollectionFlags:
    """Data: which collections are searched, and where the scores go."""

    dataset_name: str = field(
        metadata=flag(
            "A collection in BEIR's form (queries, corpus, qrels), a folder of such collections, or a Hugging Face "
            "name.",
            "DIR|NAME",
        )
    )
    encode_output_path: str = field(
        metadata=flag("Folder for the scores and the embeddings. Ranks on several machines must share it.", "DIR")
    )
    subset_name: list[str] = field(
        default_factory=lambda: ["all"],
        metadata=flag("Collections by name, groups of MMEB-V2's visual documents, or all.", "NAME"),
    )
    dataset_split: str | None = field(
        default=None,
        metadata=flag("Split, if files are named by split. If not given: MMEB-V2's for its sets, else test.", "NAME"),
    )
    image_dir: str | None = field(
        default=None,
        metadata=flag("Folder that image paths are relative to. If not given: the collection's own.", "DIR"),
    )


@dataclass
class RetrievalArguments(EncodingArguments, _CollectionFlags):
    """Search: how queries and documents are put into prompts, and what is ranked."""

    query_instruction: str | None = field(
        default=None,
        metadata=flag(
            "Instruction before every query, or a whole text with {text} in the query's place. If not given: MMEB-V2's "
            "for its sets, else none."
        ),
    )
    document_instruction: str | None = field(
        default=None,
        metadata=flag(
            "Instruction before every document, or a whole text with {text} and <|image_1|>. If not given: MMEB-V2's "
            "for its sets, else none."
        ),
    )
    language: str | None = field(
        default=None,
        metadata=flag("Only use queries with this value in the column 'language'. If not given: all.", "NAME"),
    )
    top_k: int = field(default=100, metadata=flag("Number of documents in each ranked list."))
    skip_own_id: bool = field(
        default=False,
        metadata=flag("Never rank a document with the query's id, as BEIR does for queries in the corpus."),
    )
    allow_links: bool = field(
        default=False,
        metadata=flag("Follow symbolic links that lead out of the image folder, for images on a different disk."),
    )
    num_frames: int | None = field(
        default=None,
        metadata=flag(
            "Frames per clip, if an image path names a folder of frames. If not given: such paths are errors."
        ),
    )
    # Set by the launcher, not by people.
    local_rank: int = field(default=-1, metadata=flag(argparse.SUPPRESS))

    def __post_init__(self) -> None:
        if self.top_k < max(CUTOFFS):
            raise InputError(f"--top_k {self.top_k}: must be at least {max(CUTOFFS)}, for the metrics")
        at_least_one("per_device_eval_batch_size", self.per_device_eval_batch_size)
        at_least_one("batch_tokens", self.batch_tokens)
        at_least_one("num_frames", self.num_frames)
        if self.dataloader_num_workers < 0:
            raise InputError(f"--dataloader_num_workers {self.dataloader_num_workers}: must be 0 or more")


def parser() -> DataclassParser:
    """The command line of `eval.retrieval`."""
    return parser_of(
        (EncoderArguments, RetrievalArguments),
        prog="python -m eval.retrieval",
        description="Scores a model on retrieval collections: nDCG, recall, MRR and MAP over a whole corpus. A run "
        "that was stopped is continued by the same command.",
        examples=(
            "python -m eval.retrieval --model_name demo/trained --dataset_name demo/mini/visdoc --encode_output_path "
            "demo/scores/visdoc",
        ),
    )


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[EncoderArguments, RetrievalArguments]:
    """Parses the command line (`sys.argv` if None).

    Raises:
        InputError: An unknown or incomplete option, or options that contradict each other.
    """
    return cast(tuple[EncoderArguments, RetrievalArguments], parse_groups(parser(), argv))
