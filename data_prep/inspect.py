"""Shows what is in converted shards: a table on screen, and a page for the browser.

    python -m data_prep.inspect SHARDS [--html FILE] [--tokenizer MODEL_FOLDER]

The page is one file without scripts or links to elsewhere; its images are scaled down and lie inside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep.command_line import Parser, not_negative
from data_prep.inspect_page import page
from data_prep.statistics import Histogram, SideStatistics, SubsetStatistics, subset_statistics, token_counter
from vlm2vec.errors import InputError, run_program
from vlm2vec.files import committed
from vlm2vec.messages.command_line import Parser as AnyParser
from vlm2vec.messages.terminal import column, open_console, print_table
from vlm2vec.shards import ShardSet
from vlm2vec.shards.manifest import Manifest
from vlm2vec.shards.schema import NEGATIVE, POSITIVE, QUERY

_BARS = " ▁▂▃▄▅▆▇█"


def collect(root: Path, examples: int, tokenizer: Path | None) -> list[SubsetStatistics]:
    """Every subset's statistics.

    Raises:
        InputError: no shards there, damaged ones, or no tokenizer.
    """
    count_tokens = token_counter(tokenizer) if tokenizer else None
    manifest, shards = Manifest.read(root), ShardSet.open(root)
    return [
        subset_statistics(
            shards, name, subset.skipped, sum(shard.bytes for shard in subset.shards), examples, count_tokens
        )
        for name, subset in manifest.subsets.items()
    ]


def _show(console: Console, subsets: list[SubsetStatistics]) -> None:
    table = Table(
        column("subset", "left"),
        *(column("rows"), column("MB"), column("query → target", "left"), column("hard\nnegat.")),
        *(column("query text\nmedian, max"), column("query\nshape", "left")),
        *(column("target text\nmedian, max"), column("target\nshape", "left")),
        column("images\nmedian px"),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for subset in subsets:
        negatives = sum(subset.sides[NEGATIVE].modalities.values()) if NEGATIVE in subset.sides else 0
        query, target = subset.sides[QUERY], subset.sides[POSITIVE]
        table.add_row(
            escape(subset.name),
            f"{subset.rows:,}",
            f"{subset.bytes / 1e6:,.1f}",
            f"{_modalities(query)} → {_modalities(target)}",
            f"{negatives:,}" if negatives else "",
            *_text_cells(query.text_lengths),
            *_text_cells(target.text_lengths),
            ", ".join(f"{side.image_sizes.median:,}" for side in (query, target) if side.image_sizes.counts),
        )
    print_table(console, table)
    units = {subset.length_unit for subset in subsets}
    console.print(f"Text lengths in {' or '.join(sorted(units))}; of images the longer side.", highlight=False)


def _modalities(side: SideStatistics) -> str:
    return " or ".join(side.modalities)


def _text_cells(lengths: Histogram) -> tuple[str, str]:
    """Median and maximum; the histogram's bars."""
    if not lengths.counts:
        return "", ""
    highest = max(lengths.counts)
    bars = "".join(_BARS[-(-count * (len(_BARS) - 1) // highest)] for count in lengths.counts)
    return f"{lengths.median:,}, {lengths.largest:,}", bars


def parser() -> AnyParser:
    """The command line."""
    made = Parser(
        prog="python -m data_prep.inspect",
        description="Shows what shards contain: rows, text lengths and image sizes of each subset, and examples.",
        examples=("python -m data_prep.inspect demo/shards --html shards.html",),
    )
    made.add_argument("shards", type=Path, help="Folder of shards that data_prep.convert wrote.")
    made.add_argument(
        "--html", type=Path, metavar="FILE", help="Write a page with histograms and examples to this file."
    )
    made.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="Model folder whose tokenizer measures the texts. If not given: text lengths are in characters.",
    )
    made.add_argument("--examples", type=not_negative, default=4, help="Number of pairs of each subset on the page.")
    return made


def main() -> None:
    """Parses the command line, prints the table, writes the page."""
    arguments = parser().parse_args()
    examples = arguments.examples if arguments.html else 0
    subsets = collect(arguments.shards, examples, arguments.tokenizer)
    console = open_console()
    _show(console, subsets)
    if arguments.html:
        content = page(arguments.shards.resolve().name, Manifest.read(arguments.shards).fingerprint, subsets)
        try:
            with committed(arguments.html) as temporary:
                temporary.write_text(content, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{arguments.html}: cannot write the page ({error.strerror})") from error
        print(arguments.html)


if __name__ == "__main__":
    sys.exit(run_program(main))
