"""Kills the converter at random moments, restarts it, and compares the shards with those of an undisturbed run.

    python -m trials.kills [--data mmeb] [--trials 20] [--seed 0]

It converts the demo's benchmark (mmeb), the same with its images in zips (zips), or a table with several images and
several negatives a pair (own).
Every second trial kills only the main process, so that its workers must notice; the others kill all processes. Every
third trial kills three times before the program may finish.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_prep.archive import ARCHIVE_FOLDER, UNPACKED_FOLDER
from data_prep.mini_mmeb import TRAIN_FOLDER, build_mini_mmeb
from trials.rig.hand_made_train import image_bytes, tree
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line

ROWS_PER_SHARD = 2
_OWN_PAIRS = 400
_LIMIT_SECONDS = 1200.0


def make_benchmark(folder: Path) -> Path:
    """A twentieth of the demo's benchmark; returns its training data."""
    build_mini_mmeb(folder, scale=0.05)
    return folder / TRAIN_FOLDER


def make_zips(folder: Path) -> Path:
    """The same with the images of each subset in images_zip/SUBSET.zip, as MMEB-train is published."""
    source = make_benchmark(folder)
    (source / ARCHIVE_FOLDER).mkdir()
    for subset in sorted((source / UNPACKED_FOLDER).iterdir()):
        with zipfile.ZipFile(source / ARCHIVE_FOLDER / f"{subset.name}.zip", "w") as archive:
            for file in sorted(path for path in subset.rglob("*") if path.is_file()):
                archive.write(file, file.relative_to(source / UNPACKED_FOLDER))
        shutil.rmtree(subset)
    return source


def make_own_pairs(folder: Path) -> Path:
    """A table of pairs with two images in each query and two negatives in every third."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(_OWN_PAIRS):
        names = [f"images/{number}-{place}.png" for place in range(2)]
        for place, name in enumerate(names):
            (folder / name).write_bytes(image_bytes((2 * number + place) % 256))
        negatives = [f"not {number}", f"nor {number}"] if number % 3 == 0 else []
        rows.append({"query": "same?", "query_image": names, "positive": f"yes {number}", "negative": negatives})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


DATA = {"mmeb": make_benchmark, "zips": make_zips, "own": make_own_pairs}


@dataclass(frozen=True)
class Trial:
    """How many shards were committed at each kill, and whether the final bytes are those of an undisturbed run."""

    whole_group: bool
    shards_at_kill: tuple[int, ...]
    equal: bool


def start(source: Path, output: Path) -> subprocess.Popen[bytes]:
    """Starts the converter with two workers, in a new process group."""
    command = [sys.executable, "-m", "data_prep.convert", "--dataset_name", source]
    command += ["--subset_name", "all"] if source.is_dir() else []
    command += ["--output_dir", output, "--rows_per_shard", str(ROWS_PER_SHARD), "--num_workers", "2"]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, start_new_session=True)


def run_undisturbed(source: Path, output: Path) -> float:
    """Runs without a kill; returns the seconds from the plan to the end."""
    process = start(source, output)
    try:
        begin = wait_for_plan(process, output)
        assert process.wait(_LIMIT_SECONDS) == 0
    finally:
        end(process)
    return time.monotonic() - begin


def run_trial(
    source: Path, output: Path, num_shards: int, seconds: float, number: int, generator: random.Random
) -> tuple[int, ...]:
    """Kills once or three times, then lets the program finish.

    A kill waits until a random number of the remaining shards is committed, and then up to twice the time that a shard
    takes. Random times would mostly hit the start and the end, which take longer than all shards.

    Returns:
        The number of committed shards at each kill, without kills that came too late.
    """
    committed: list[int] = []
    for _ in range(1 if number % 3 else 3):
        target = generator.randint(_committed(output), num_shards)
        process = start(source, output)
        try:
            wait_for_plan(process, output)
            while _committed(output) < target and process.poll() is None:
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 2 * seconds / num_shards))
            if number % 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            if process.wait(_LIMIT_SECONDS) == -signal.SIGKILL:  # otherwise it had ended before
                committed.append(_committed(output))
        finally:
            if number % 2:
                end(process)
    process = start(source, output)
    try:
        assert process.wait(_LIMIT_SECONDS) == 0
    finally:
        end(process)
    return tuple(committed)


def _committed(output: Path) -> int:
    return len(list(output.rglob("*-*.json")))


def wait_for_plan(process: subprocess.Popen[bytes], output: Path) -> float:
    """Waits until the program has written its plan; returns the time."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not (output / "plan.json").exists():
        assert process.poll() is None, "the converter has ended before its plan"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return time.monotonic()


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills the remaining processes of a process group that was started here."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_LIMIT_SECONDS)


def run_trials(source: Path, work: Path, trials: int, seed: int) -> list[Trial]:
    """Runs all trials below `work`."""
    generator = random.Random(seed)
    seconds = run_undisturbed(source, work / "undisturbed")
    expected = tree(work / "undisturbed")
    num_shards = len(list((work / "undisturbed").rglob("*.tar")))
    results = []
    for number in range(trials):
        output = work / f"trial-{number}"
        committed = run_trial(source, output, num_shards, seconds, number, generator)
        results.append(Trial(bool(number % 2), committed, tree(output) == expected))
    return results


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m trials.kills", description=first_line(__doc__), examples=("python -m trials.kills --trials 20",)
    )
    made.add_argument("--data", choices=tuple(DATA), default="mmeb", help="What is converted.")
    made.add_argument("--trials", type=int, default=20, help="Number of conversions that are killed.")
    made.add_argument("--seed", type=int, default=0, help="Seed of the random choices.")
    return made


def main() -> None:
    """Parses the command line, runs the trials, prints each."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = DATA[arguments.data](Path(folder) / "data")
        results = run_trials(source, Path(folder), arguments.trials, arguments.seed)
        shards = len(list((Path(folder) / "undisturbed").rglob("*.tar")))
    print(f"| trial | killed | committed shards (of {shards}) at each kill | shards at the end |")
    print("| --- | --- | --- | --- |")
    for number, trial in enumerate(results):
        what = "all processes" if trial.whole_group else "the program only"
        moments = ", ".join(map(str, trial.shards_at_kill)) or "not in time"
        print(f"| {number} | {what} | {moments} | {'equal' if trial.equal else 'DIFFERENT'} |")
    kills = sum(len(trial.shards_at_kill) for trial in results)
    equal = sum(trial.equal for trial in results)
    print(f"\n{kills} kills in {len(results)} trials; {equal} ended with the bytes of an undisturbed run")
    sys.exit(equal != len(results))


if __name__ == "__main__":
    sys.exit(run_program(main))
