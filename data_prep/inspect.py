"""Shows what is in converted shards: a table in the terminal, and a page for the browser.

    python -m data_prep.inspect SHARDS [--html FILE] [--show] [--mined MINED] [--tokenizer MODEL_FOLDER]

The page is one file without scripts or links to elsewhere; its images are scaled down and are part of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep.command_line import Parser, not_negative
from data_prep.inspect_mined import MinedStatistics, mined_statistics, mined_table, open_mined
from data_prep.inspect_page import page
from data_prep.inspect_text import example_lines
from data_prep.statistics import Histogram, SideStatistics, SubsetStatistics, subset_statistics, token_counter
from vlm2vec.errors import InputError, run_program
from vlm2vec.files import committed
from vlm2vec.messages.command_line import Parser as AnyParser
from vlm2vec.messages.terminal import column, open_console, print_table
from vlm2vec.mined.format import Mined
from vlm2vec.shards import ShardSet
from vlm2vec.shards.manifest import Manifest
from vlm2vec.shards.schema import POSITIVE, QUERY

# Of each subset, and of each row of its mined negatives the hardest ones.
_EXAMPLES, _MINED_NEGATIVES = 4, 4
_BARS = " ▁▂▃▄▅▆▇█"


def collect(shards: ShardSet, manifest: Manifest, examples: int, tokenizer: Path | None) -> list[SubsetStatistics]:
    """Every subset's statistics.

    Raises:
        InputError: Damaged shards, or no tokenizer.
    """
    count_tokens = token_counter(tokenizer) if tokenizer else None
    return [
        subset_statistics(
            shards, name, subset.skipped, sum(shard.bytes for shard in subset.shards), examples, count_tokens
        )
        for name, subset in manifest.subsets.items()
    ]


def collect_mined(shards: ShardSet, mined: Mined, examples: int) -> list[MinedStatistics | None]:
    """What was mined of every subset; None for those that were not mined.

    Raises:
        InputError: A subset's file is damaged.
    """
    return [mined_statistics(mined, shards, name, examples, _MINED_NEGATIVES) for name in shards.subsets]


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
        negatives = subset.num_negatives
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
    """Median and maximum, and the histogram's bars; or the only value."""
    if not lengths.counts:
        return "", ""
    if lengths.only is not None:
        return f"all {lengths.only:,}", ""
    highest = max(lengths.counts)
    bars = "".join(_BARS[-(-count * (len(_BARS) - 1) // highest)] for count in lengths.counts)
    return f"{lengths.median:,}, {lengths.largest:,}", bars


def parser() -> AnyParser:
    """The command line."""
    made = Parser(
        prog="python -m data_prep.inspect",
        description="Shows what shards contain: rows, text lengths and image sizes of each subset, and examples.",
        examples=(
            "python -m data_prep.inspect demo/shards --html shards.html",
            "python -m data_prep.inspect demo/shards --mined demo/mined --show",
        ),
    )
    made.add_argument("shards", type=Path, help="Folder of shards that data_prep.convert wrote.")
    made.add_argument(
        "--html", type=Path, metavar="FILE", help="Write a page with histograms and examples to this file."
    )
    made.add_argument("--show", action="store_true", help="Print examples in the terminal.")
    made.add_argument(
        "--mined",
        type=Path,
        metavar="DIR",
        help="Output folder of data_prep.mine: also show the mined negatives, their scores and the clusters.",
    )
    made.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="Model folder whose tokenizer measures the texts. If not given: text lengths are in characters.",
    )
    made.add_argument(
        "--examples",
        type=not_negative,
        metavar="N",
        help=f"Number of pairs of each subset on the page or in the terminal. If not given: {_EXAMPLES}.",
    )
    return made


def main() -> None:
    """Parses the command line, prints the tables and examples, writes the page."""
    arguments = parser().parse_args()
    wants_examples = bool(arguments.html or arguments.show)
    if arguments.examples is not None and not wants_examples:
        raise InputError(f"--examples {arguments.examples}: no effect without --html or --show")
    examples = (_EXAMPLES if arguments.examples is None else arguments.examples) if wants_examples else 0
    manifest, shards = Manifest.read(arguments.shards), ShardSet.open(arguments.shards)
    sidecar = open_mined(arguments.mined, shards) if arguments.mined else None
    subsets = collect(shards, manifest, examples, arguments.tokenizer)
    mined = collect_mined(shards, sidecar, examples) if sidecar else [None] * len(subsets)
    console = open_console()
    _show(console, subsets)
    if sidecar is not None:
        print_table(console, mined_table(zip((subset.name for subset in subsets), mined, strict=True)))
    if arguments.show:
        for subset, found in zip(subsets, mined, strict=True):
            for line in example_lines(subset.examples, found.examples if found else None):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    if arguments.html:
        content = page(arguments.shards.resolve().name, shards.fingerprint, subsets, sidecar, mined)
        try:
            with committed(arguments.html) as temporary:
                temporary.write_text(content, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{arguments.html}: cannot write the page ({error.strerror})") from error
        print(arguments.html)


if __name__ == "__main__":
    sys.exit(run_program(main))
