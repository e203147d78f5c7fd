"""python -m vlm2vec.average A B ... OUT: the weighted mean of adapters, or of models."""

from __future__ import annotations

import sys
from pathlib import Path

from vlm2vec.messages.progress import announce_imports

if __name__ == "__main__":
    announce_imports()

from vlm2vec.average.folder import average
from vlm2vec.errors import run_program
from vlm2vec.export.folder import DEFAULT_SHARD_SIZE
from vlm2vec.messages.command_line import Parser


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m vlm2vec.average",
        description="Writes the weighted mean of adapters, or of models, as a new folder.",
        examples=("python -m vlm2vec.average demo/exported demo/other AVERAGED --weights 2 1",),
    )
    made.add_argument(
        "folders", nargs="+", metavar="DIR", help="Two or more adapters or models, then the folder to make."
    )
    made.add_argument(
        "--weights",
        type=float,
        nargs="+",
        help="One weight per input folder; only their ratios matter. If not given: all are equal.",
    )
    made.add_argument(
        "--lora",
        choices=("exact", "mean"),
        help="How adapters are averaged. exact: the mean of the products B A, with the sum of the ranks. mean: the "
        "mean of A and the mean of B, with the rank unchanged; their product is not the mean of the products. If not "
        "given: exact.",
    )
    made.add_argument(
        "--max_shard_size",
        metavar="SIZE",
        help=f"Size limit of a weight file of a model, such as 500MB; memory stays below three times this. If not "
        f"given: {DEFAULT_SHARD_SIZE}.",
    )
    made.add_argument(
        "--allow_other_base", action="store_true", help="Average what was trained from different base weights."
    )
    return made


def main() -> None:
    """Averages from the command line."""
    options = parser().parse_args()
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
