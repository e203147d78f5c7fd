"""Compares the miniature's base recipe with options that improved scores in papers, over several seeds.

    python -m benchmarks.recipes [--demo demo] [--seeds 1 2 3] [--steps 150] [--at_once 2]

It needs the data, shards and trained model of `make demo`. The trained model is the teacher that mines the shards, and
every run continues its training with the demo's recipe, except for the number of steps and the flags of its row. (From
the untrained model, few steps end at 53 or at 68 %, depending on the seed alone.) One process trains; its export is
scored on all datasets of the miniature. After a kill, the same command continues: finished runs are kept below
DEMO/recipes, by their flags. Remove that folder to run with changed code.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.miniature_runs import GROUPS, MiniatureRuns, over_seeds, program, read_groups
from data_prep.command_line import positive
from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser
from vlm2vec.mined.format import MINED_NAME
from vlm2vec.mmeb import META_TASKS

# Rows per mined cluster, as in B3; four clusters make a batch of the miniature's recipe.
CLUSTER = 32
NEGATIVES = 4
BASE = "base recipe"
MINING = ("--cluster_size", str(CLUSTER))
_MINED = "MINED"  # stands for the folder in a variant's flags
_CLUSTERS = ("--homogeneous_batch_size", str(CLUSTER), "--mined", _MINED, "--mined_clusters", "True")
VARIANTS: dict[str, tuple[str, ...]] = {
    BASE: (),
    "+ hardness weight 9": ("--hardness_weight", "9"),
    f"+ homogeneous batches of {CLUSTER}": ("--homogeneous_batch_size", str(CLUSTER)),
    f"+ mined clusters of {CLUSTER}": _CLUSTERS,
    "the same without the teacher's likely matches": (*_CLUSTERS, "--false_negative_source", "teacher"),
    "the same without targets of a cosine above 0.95": (*_CLUSTERS, "--false_negative_similarity", "0.95"),
    f"+ {NEGATIVES} mined negatives": ("--mined", _MINED, "--mined_negatives", str(NEGATIVES)),
}


@dataclass(frozen=True)
class Miniature:
    """What runs share.

    Attributes:
        demo: The demo's folder.
        steps: Number of steps of every run.
    """

    demo: Path
    steps: int

    @property
    def folder(self) -> Path:
        """The folder of the results, and of runs in progress."""
        return self.demo / "recipes"

    @property
    def mined(self) -> Path:
        """The sidecar."""
        return self.folder / "mined"

    @property
    def trained(self) -> Path:
        """The model that is the teacher, and whose training continues."""
        return self.demo / "trained"

    def mine(self) -> None:
        """Mines the shards, unless they are mined already."""
        if not (self.mined / MINED_NAME).exists():
            program(
                *("data_prep.mine", str(self.demo / "shards"), "--model_name", str(self.trained)),
                *("--output_dir", str(self.mined), *MINING),
            )

    def before(self) -> float:
        """Overall Precision@1 of the model before its training continues, in percent."""
        return read_groups(self.demo / "scores" / "trained")["overall"]

    def result(self, variant: str, seed: int) -> dict[str, float]:
        """A finished run's scores, from its file or by running it."""
        flags = VARIANTS[variant]
        mining = [MINING] if _MINED in flags else []
        length = ["--max_steps", str(self.steps), "--warmup_steps", str(self.steps // 10), "--seed", str(seed)]
        placed = [str(self.mined) if flag == _MINED else flag for flag in flags]
        runs = MiniatureRuns(self.demo, self.folder)
        key = [flags, seed, self.steps, *mining]
        return runs.result(f"{variant}, seed {seed}", self.trained, [*length, *placed], key)


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[str]:
    """Means over the seeds, the spread of the overall mean, and the difference from the base recipe for each seed."""
    columns = ["recipe", "overall P@1, %", "standard deviation", "min to max", "difference from the base (each seed)"]
    yield f"| {' | '.join([*columns, *META_TASKS])} |"
    yield f"| {' | '.join(['---'] * (len(columns) + len(META_TASKS)))} |"
    base = [scores["overall"] for scores in results[BASE]]
    for variant, found in results.items():
        overall = [scores["overall"] for scores in found]
        gains = [here - there for here, there in zip(overall, base, strict=True)]
        beside = "" if variant == BASE else f"{statistics.mean(gains):+.1f} ({', '.join(f'{x:+.1f}' for x in gains)})"
        groups = [f"{statistics.mean(scores[name] for scores in found):.1f}" for name in GROUPS[1:]]
        yield (
            f"| {variant} | **{statistics.mean(overall):.1f}** | {statistics.stdev(overall):.1f} | "
            f"{min(overall):.1f} to {max(overall):.1f} | {beside} | {' | '.join(groups)} |"
        )


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.recipes",
        description="Trains the miniature with several recipes and seeds, and compares the scores.",
        examples=("python -m benchmarks.recipes --demo demo --seeds 1 2 3 --steps 150",),
    )
    made.add_argument("--demo", type=Path, default=Path("demo"), metavar="DIR", help="Folder of the demo.")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="Seeds, at least two.")
    made.add_argument("--steps", type=positive, default=150, help="Steps per run.")
    made.add_argument("--at_once", type=positive, default=2, help="Number of runs at a time.")
    return made


def main() -> None:
    """Prints the table in Markdown."""
    arguments = parser().parse_args()
    mini = Miniature(arguments.demo, arguments.steps)
    if not mini.trained.exists():
        raise InputError(
            f"{mini.demo}: no trained miniature there; run `make demo` first, or give its folder with --demo"
        )
    mini.folder.mkdir(exist_ok=True)
    mini.mine()
    results = over_seeds([*VARIANTS], arguments.seeds, arguments.at_once, mini.result)
    before = mini.before()
    print(
        f"{mini.steps} further steps from a model with {before:.1f} %; seeds {', '.join(map(str, arguments.seeds))}.\n"
    )
    print("\n".join(table(results)))


if __name__ == "__main__":
    sys.exit(run_program(main))
