"""python -m vlm2vec.average A B ... OUT: the weighted mean of adapters, or of models."""

from __future__ import annotations

import sys
from pathlib import Path

from vlm2vec.average.folder import average
from vlm2vec.errors import run_program
from vlm2vec.export.folder import DEFAULT_SHARD_SIZE
from vlm2vec.messages.command_line import Parser


def main() -> None:
    """Averages from the command line."""
    parser = Parser(prog="vlm2vec.average", description=__doc__)
    parser.add_argument("folders", nargs="+", help="two or more adapters or models, then the folder to make")
    parser.add_argument(
        "--weights", type=float, nargs="+", help="one for each folder, of which the ratios count; equal if not given"
    )
    parser.add_argument(
        "--lora",
        choices=("exact", "mean"),
        help="of adapters: the mean of the products B A, with the sum of the ranks (exact, if not given), or the mean "
        "of A and the mean of B, with the rank as it is, whose product is another one",
    )
    parser.add_argument(
        "--max_shard_size",
        help=f"largest weight file of a model, {DEFAULT_SHARD_SIZE} if not given; memory stays below three times this",
    )
    parser.add_argument(
        "--allow_other_base", action="store_true", help="average what was trained from different weights"
    )
    options = parser.parse_args()
    *names, output = options.folders
    shares = average(
        names,
        Path(output),
        options.weights,
        factors=options.lora,
        max_shard_size=options.max_shard_size,
        allow_other_base=options.allow_other_base,
    )
    made = " + ".join(f"{share:.6g} x {name}" for share, name in zip(shares, names, strict=True))
    print(f"averaged to {output}: {made}")


if __name__ == "__main__":
    sys.exit(run_program(main))
