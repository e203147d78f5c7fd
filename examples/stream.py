"""Streams shards with `webdataset` alone, for training code of your own.

    python examples/stream.py --dataset_name SHARDS [--subset_name all] [--pairs 5] [--num_workers 2]

SHARDS is a folder that data_prep.convert wrote. Such a stream reads whole tars one after the other and shuffles in a
buffer; each rank and worker takes tars of its own. It is not the global order that vlm2vec.train follows: what a step
sees depends on the number of ranks and workers, and an epoch is not exact.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import webdataset
from PIL import Image

from vlm2vec.errors import InputError, run_program
from vlm2vec.images.decode import open_image
from vlm2vec.messages.command_line import Parser

SHUFFLE_BUFFER = 1000  # pairs, undecoded


class Side(NamedTuple):
    """A query or a target: a text, an image or both."""

    text: str
    image: Image.Image | None


def pair_of(sample: Mapping[str, Any]) -> tuple[str, Side, Side]:
    """Key, query and target of a sample: `json` holds the texts, `qry.*` and `pos.*` the images as they came."""
    record = json.loads(sample["json"])
    images = {name.partition(".")[0]: data for name, data in sample.items() if name.startswith(("qry.", "pos."))}
    sides = [
        Side(record[side]["text"], open_image(images[member], sample["__key__"]) if member in images else None)
        for side, member in (("query", "qry"), ("positive", "pos"))
    ]
    return sample["__key__"], sides[0], sides[1]


def stream(shards: Path, subset: str) -> tuple[webdataset.WebDataset, int]:
    """All pairs of a subset, or of `all` subsets, once; and how many tars they lie in.

    Raises:
        InputError: No tar is there.
    """
    tars = sorted(str(path) for path in shards.glob("*/*.tar" if subset == "all" else f"{subset}/*.tar"))
    if not tars:
        raise InputError(f"{shards}: no tars of {subset} there; data_prep.convert writes them")
    pairs = webdataset.WebDataset(tars, shardshuffle=len(tars), nodesplitter=webdataset.split_by_node)
    return pairs.shuffle(SHUFFLE_BUFFER).map(pair_of), len(tars)


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python examples/stream.py",
        description="Prints pairs of shards, read through webdataset.",
        examples=("python examples/stream.py --dataset_name demo/shards --pairs 5",),
    )
    made.add_argument("--dataset_name", type=Path, required=True, metavar="DIR", help="Folder of shards.")
    made.add_argument("--subset_name", default="all", metavar="NAME", help="One subset, or all.")
    made.add_argument("--pairs", type=int, default=5, help="Number of pairs to print.")
    made.add_argument("--num_workers", type=int, default=2, help="Processes that decode.")
    return made


def main() -> None:
    """Parses the command line and prints some pairs."""
    arguments = parser().parse_args()
    pairs, num_tars = stream(arguments.dataset_name, arguments.subset_name)
    # Workers share the tars; webdataset refuses one that gets none.
    num_workers = min(arguments.num_workers, num_tars)
    loader = webdataset.WebLoader(pairs, batch_size=None, num_workers=num_workers)
    for key, query, target in loader.slice(arguments.pairs):
        print(key)
        for name, side in (("query", query), ("target", target)):
            size = f"{side.image.width} x {side.image.height}" if side.image else "no image"
            print(f"  {name}: {size}, {side.text!r}")


if __name__ == "__main__":
    sys.exit(run_program(main))
