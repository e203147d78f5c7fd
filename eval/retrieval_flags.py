"""The options of `python -m eval.retrieval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from eval.mmeb_flags import EncoderArguments, at_least_one, parse_groups
from vlm2vec.errors import InputError
from vlm2vec.evaluation.retrieval.metrics import CUTOFFS


@dataclass
class RetrievalArguments:
    """Which collections, how they are searched, and where the scores go."""

    dataset_name: str = field(
        metadata={
            "help": "a collection in BEIR's form (queries, corpus, qrels), a folder of such collections, or a Hugging "
            "Face name"
        }
    )
    encode_output_path: str = field(
        metadata={"help": "folder for the run's files and its embeddings; ranks on several machines must share it"}
    )
    subset_name: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={"help": "collections by name, or groups of MMEB-V2's visual documents, or all; default: all"},
    )
    dataset_split: str | None = field(
        default=None,
        metadata={"help": "the split, where files are named after splits; default: MMEB-V2's for its sets, else test"},
    )
    image_dir: str | None = field(
        default=None, metadata={"help": "folder that image paths start from; default: the collection's own"}
    )
    query_instruction: str | None = field(
        default=None,
        metadata={
            "help": "instruction of every query, or a whole text with {text} where the query belongs; default: "
            "MMEB-V2's for its sets, else none"
        },
    )
    document_instruction: str | None = field(
        default=None,
        metadata={
            "help": "instruction of every document, or a whole text with {text} and <|image_1|>; default: MMEB-V2's "
            "for its sets, else none"
        },
    )
    language: str | None = field(
        default=None, metadata={"help": "only queries whose column language has this value; default: all"}
    )
    top_k: int = field(default=100, metadata={"help": "documents of each ranked list; default: 100"})
    skip_own_id: bool = field(
        default=False,
        metadata={"help": "never rank a document that has the query's id, as BEIR does for queries in the corpus"},
    )
    per_device_eval_batch_size: int | None = field(
        default=None, metadata={"help": "most items in one batch; default: batches are packed by tokens alone"}
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": "most tokens in one batch, padding counted; default: 16,384, on a CPU 4,096"},
    )
    dataloader_num_workers: int = field(
        default=2, metadata={"help": "processes a rank that decode images ahead; 0 = in the rank itself; default: 2"}
    )
    allow_links: bool = field(
        default=False, metadata={"help": "follow links that lead out of the image folder, for images on another disk"}
    )
    num_frames: int | None = field(
        default=None,
        metadata={
            "help": "frames of a clip, where an image path names a folder of frames; default: such paths are errors"
        },
    )
    local_rank: int = field(default=-1, metadata={"help": "set by the launcher"})

    def __post_init__(self) -> None:
        if self.top_k < max(CUTOFFS):
            raise InputError(f"--top_k {self.top_k}: must be at least {max(CUTOFFS)}, for the metrics")
        at_least_one("per_device_eval_batch_size", self.per_device_eval_batch_size)
        at_least_one("batch_tokens", self.batch_tokens)
        at_least_one("num_frames", self.num_frames)
        if self.dataloader_num_workers < 0:
            raise InputError(f"--dataloader_num_workers {self.dataloader_num_workers}: must be 0 or more")


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[EncoderArguments, RetrievalArguments]:
    """Parses the command line (`sys.argv` if None).

    Raises:
        InputError: An unknown or incomplete option, or options that contradict.
    """
    parsed = parse_groups(
        (EncoderArguments, RetrievalArguments),
        "python -m eval.retrieval",
        "Scores a model on retrieval data sets: nDCG, recall, MRR and MAP over a whole corpus.",
        argv,
    )
    return cast(tuple[EncoderArguments, RetrievalArguments], parsed)
