"""Trains the demo's miniature of each model family with several seeds: mean and spread of what `make demo` prints.

    python -m benchmarks.demo_seeds [--demo demo] [--families NAME ...] [--seeds 42 1 2] [--at_once 2]

It needs the data and shards of `make demo`. Each run trains a family's miniature, with the demo's initial weights, by
the demo's recipe with a different seed, so with a different order of the data. One process trains. After a kill, the
same command continues: finished runs are kept below DEMO/seeds. Remove that folder to run with changed code.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.miniature_runs import MiniatureRuns, over_seeds, program
from data_prep.command_line import positive
from data_prep.mini.models import BUILDERS
from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser
from vlm2vec.shards.schema import MANIFEST_NAME


def make_model(demo: Path, folder: Path, family: str) -> Path:
    """The family's untrained miniature, as the demo makes it."""
    model = folder / f"untrained-{family}"
    if not (model / "tokenizer.json").exists():
        data = str(demo / "mini" / "MMEB-train")
        program("data_prep.mini_model", "--family", family, "--dataset_name", data, "--output_dir", str(model))
    return model


def table(
    untrained: Mapping[str, Mapping[str, float]], trained: Mapping[str, Sequence[Mapping[str, float]]]
) -> Iterator[str]:
    """Overall Precision@1 of each family: untrained, mean and standard deviation over the seeds, each seed."""
    yield "| family | untrained | trained, mean | standard deviation | each seed |"
    yield "| --- | --- | --- | --- | --- |"
    for family, found in trained.items():
        overall = [scores["overall"] for scores in found]
        yield (
            f"| {family} | {untrained[family]['overall']:.1f} | **{statistics.mean(overall):.1f}** | "
            f"{statistics.stdev(overall):.1f} | {', '.join(f'{each:.1f}' for each in overall)} |"
        )


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.demo_seeds",
        description="Trains the demo's miniature of each model family with several seeds, and prints mean and spread.",
        examples=("python -m benchmarks.demo_seeds --demo demo --seeds 42 1 2",),
    )
    families = sorted(BUILDERS)
    made.add_argument("--demo", type=Path, default=Path("demo"), metavar="DIR", help="Folder of the demo.")
    made.add_argument("--families", nargs="+", choices=families, default=families, help="Model families.")
    made.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2], help="At least two seeds; the demo's is 42.")
    made.add_argument("--at_once", type=positive, default=2, help="Number of runs at a time.")
    return made


def main() -> None:
    """Prints the table in Markdown."""
    arguments = parser().parse_args()
    demo: Path = arguments.demo
    if not (demo / "shards" / MANIFEST_NAME).exists():
        raise InputError(f"{demo}: no shards there; run `make demo` first, or give its folder with --demo")
    mini = MiniatureRuns(demo, demo / "seeds")
    mini.folder.mkdir(exist_ok=True)
    models = {family: make_model(demo, mini.folder, family) for family in arguments.families}

    def result(family: str, seed: int) -> dict[str, float]:
        return mini.result(f"{family}, seed {seed}", models[family], ["--seed", str(seed)], (family, seed))

    trained = over_seeds(arguments.families, arguments.seeds, arguments.at_once, result)
    untrained = {family: mini.score(model) for family, model in models.items()}
    print(f"Precision@1 in %; seeds {', '.join(map(str, arguments.seeds))}.\n")
    print("\n".join(table(untrained, trained)))


if __name__ == "__main__":
    sys.exit(run_program(main))
