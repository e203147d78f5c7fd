"""Kills training runs at random moments, and resumes them: `python -m trials.chaos --trials 50`.

A trial starts ranks with `--resume auto`, kills one of them with SIGKILL and the others a moment later, and restarts
them until the run finishes. About half of the kills wait until a checkpoint's temporary folder exists. The final state
is compared with an undisturbed run that wrote only its last checkpoint: weights, moments, random states, log, and the
samples of all updates that led to the final state.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trials.chaos_rank import SAMPLES
from trials.chaos_rank import main as train
from trials.rig.forked import kill, start_forked, wait, warm_up
from trials.rig.run_flags import run_flags
from trials.rig.states import differences
from trials.rig.tiny import PHI3_V
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.training.checkpoints.record import LATEST

RANKS, STEPS, BATCH = 2, 7, 8
COMMON = [
    *("--global_batch_size", str(BATCH), "--max_steps", str(STEPS), "--logging_steps", "1"),
    *("--learning_rate", "1e-3", "--temperature", "0.05", "--max_len", "64", "--chunk_tokens", "512"),
    *("--subset_name", "ColorVQA", "Recolor", "--dataloader_num_workers", "1"),
]
# The ZeRO stage and the flags that differ; all runs use loader workers.
RUNS: dict[str, tuple[int, list[str]]] = {
    "zero1": (1, []),
    "zero2": (2, []),
    "zero3": (3, []),
    "zero1-lora": (1, ["--lora"]),
    "zero2-lora": (2, ["--lora"]),
    "zero3-lora": (3, ["--lora"]),
}
# When to kill: at any time, or while a checkpoint is being written.
MOMENTS = ANY_TIME, IN_SAVE = "any time", "in a save"
# Share of the kills at any time that come while the ranks start.
STARTING = 0.2
_CLOCK = ("per_second", "milliseconds", "_share", "time_ms", "peak_memory")


@dataclass
class Trial:
    """The result of one trial."""

    name: str
    kills: int = 0
    during_save: int = 0
    repeated_steps: int = 0
    unequal: list[str] = field(default_factory=list)
    samples_lost: int = 0
    samples_repeated: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether nothing differs from the undisturbed run."""
        return not (self.unequal or self.samples_lost or self.samples_repeated)


class Chaos:
    """Runs trials of one model on one set of shards.

    Args:
        model: The untrained model, with dropout.
        shards: The data.
        root: The folder for all output.
        seed: The seed of the random moments.
    """

    def __init__(self, model: Path, shards: Path, root: Path, seed: int) -> None:
        self._model, self._shards, self._root = model, shards, root
        self._random = random.Random(seed)
        self._step_seconds = 0.0
        warm_up()

    def trial(self, name: str, number: int, moments: Sequence[str]) -> Trial:
        """One run, killed at each of some moments (see `MOMENTS`) unless it ends before, then run to the end."""
        reference = self._reference(name)
        output = self._root / f"{name}-{number}"
        resuming = ["--save_steps", "2", "--resume", "auto", "--save_total_limit", "2"]
        trial = Trial(name)
        for moment in moments:
            ranks = self._start(name, output, *resuming)
            if not self._kill(ranks, output, moment):
                break
            trial.kills += 1
            trial.during_save += any(output.glob(".tmp-checkpoint-*"))
        else:
            wait(self._start(name, output, *resuming), output)
        self._judge(trial, reference, output)
        shutil.rmtree(output)
        return trial

    def _reference(self, name: str) -> Path:
        output = self._root / name
        if not output.exists():
            begin = time.monotonic()
            wait(self._start(name, output), output)
            self._step_seconds = (time.monotonic() - begin) / STEPS
        return output

    def _start(self, name: str, output: Path, *extra: str) -> list[Any]:
        output.mkdir(exist_ok=True)
        stage, own = RUNS[name]
        flags = run_flags(self._model, self._shards, output, f"zero{stage}", *COMMON, *own, *extra)
        return start_forked(RANKS, train, (flags, output), output)

    def _kill(self, ranks: list[Any], output: Path, moment: str) -> bool:
        """Waits for the moment and kills the ranks; False if the run ended before."""
        done = int((output / LATEST).read_text().strip().rpartition("-")[2]) if (output / LATEST).exists() else 0
        # While this step runs, or in the save after it, or sometimes while the ranks start.
        # A kill after the last save leaves a run that has nothing to do: `done` may be STEPS.
        target = self._random.randint(min(done, STEPS - 1), STEPS - 1)
        if moment == ANY_TIME and self._random.random() < STARTING:
            target = -1
        delay = self._random.uniform(0, 0.03 if moment == IN_SAVE else self._step_seconds)
        while any(rank.exitcode is None for rank in ranks):
            has_begun = target < 0 or (notes_of(output) and notes_of(output)[-1]["step"] >= target)
            if has_begun and (moment == ANY_TIME or any(output.glob(".tmp-checkpoint-*"))):
                time.sleep(delay)
                kill(ranks, self._random)
                return True
            time.sleep(0.002)
        wait(ranks, output)
        return False

    def _judge(self, trial: Trial, reference: Path, output: Path) -> None:
        last = f"checkpoint-{STEPS}"
        trial.unequal = differences(reference / last, output / last)
        if _log(reference) != _log(output):
            trial.unequal.append("log.jsonl")
        expected, got = Counter(_samples(reference)[0]), Counter(_samples(output)[0])
        trial.samples_lost = BATCH * sum((expected - got).values())
        trial.samples_repeated = BATCH * sum((got - expected).values())
        trial.repeated_steps = _samples(output)[1]


def _log(output: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not any(word in key for word in _CLOCK)} for line in lines]


def notes_of(output: Path) -> list[dict[str, Any]]:
    """The ranks' records of their steps, in chronological order."""
    path = output / SAMPLES
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _samples(output: Path) -> tuple[list[str], int]:
    """Digests of the batches that led to the last state, and how many steps were lost.

    Every start of the ranks recorded its steps before they ran. A start at step k continues a state after the steps
    before k, so records of later steps by earlier starts are steps that were lost.
    """
    notes = notes_of(output)
    kept: list[str] = []
    for note in notes:
        kept = [*kept[: note["step"]], note["digest"]]
    return kept, len(notes) - len(kept)


def build_inputs(root: Path, family: str) -> tuple[Path, Path]:
    """The miniature's model of a family, with dropout, and its shards."""
    from data_prep.conversion import convert
    from data_prep.conversion_plan import DEFAULT_OPTIONS
    from data_prep.mini_mmeb import TRAIN_FOLDER, build_mini_mmeb
    from data_prep.mini_model import build_mini_model
    from data_prep.source import SourceData

    build_mini_mmeb(root / "mini", seed=0, scale=0.02)
    train = root / "mini" / TRAIN_FOLDER
    convert(
        SourceData(train, train, ["ColorVQA", "Recolor"]), root / "shards", replace(DEFAULT_OPTIONS, rows_per_shard=16)
    )
    build_mini_model(train, root / "model", seed=0, family=family)
    add_dropout(root / "model")
    return root / "model", root / "shards"


def add_dropout(model: Path) -> None:
    """Enables every kind of decoder dropout that the family has, in a model's folder."""
    config = json.loads((model / "config.json").read_text())
    decoder = config.get("text_config", config)
    decoder |= {name: 0.1 for name in ("resid_pdrop", "attention_dropout") if name in decoder}
    (model / "config.json").write_text(json.dumps(config))


def _report(trials: list[Trial]) -> Iterator[str]:
    yield "| run | trials | kills | of them in a save | bit-equal | samples lost | samples repeated | steps run again |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    groups = [(name, [trial for trial in trials if trial.name == name]) for name in RUNS]
    for name, group in [*groups, ("all", trials)]:
        if group:
            kills, saves, again = (
                sum(getattr(trial, key) for trial in group) for key in ("kills", "during_save", "repeated_steps")
            )
            lost, repeated = (sum(getattr(trial, f"samples_{key}") for trial in group) for key in ("lost", "repeated"))
            exact = sum(not trial.unequal for trial in group)
            yield f"| {name} | {len(group)} | {kills} | {saves} | {exact} | {lost} | {repeated} | {again} |"


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m trials.chaos", description=first_line(__doc__), examples=("python -m trials.chaos --trials 50",)
    )
    made.add_argument("--trials", type=int, default=50, help="Number of training runs that are killed.")
    made.add_argument("--seed", type=int, default=0, help="Seed of the random choices.")
    made.add_argument("--family", default=PHI3_V, metavar="NAME", help="Model family of the miniature.")
    return made


def main() -> int:
    """Runs the trials and prints a table; returns 1 if one of them was not exact."""
    options = parser().parse_args()
    trials = []
    chances = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos = Chaos(*build_inputs(Path(folder), options.family), Path(folder), options.seed)
        for number in range(options.trials):
            moments = chances.choices(MOMENTS, k=1 + number % 2)
            trial = chaos.trial(list(RUNS)[number % len(RUNS)], number, moments)
            trials.append(trial)
            print(f"{number + 1}/{options.trials}: {trial}", file=sys.stderr, flush=True)
    print("\n".join(_report(trials)))
    return int(not all(trial.is_exact for trial in trials))


if __name__ == "__main__":
    sys.exit(run_program(main))
