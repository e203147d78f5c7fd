"""Kills the converter at random moments, starts it again, and compares the shards with those of an undisturbed run.

    python -m tests.data_prep.kill_trials [--trials 20] [--seed 0]

Every other trial kills the program alone, so that its workers must notice; the others kill all its processes. Every
third trial kills three times before it lets the program finish.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_prep.mini_mmeb import TRAIN_FOLDER, build_mini_mmeb
from tests.data_prep.hand_made import tree

ROWS_PER_SHARD = 2
_LIMIT_SECONDS = 120.0


@dataclass(frozen=True)
class Trial:
    """How many shards were committed at each kill, and whether the final bytes are those of an undisturbed run."""

    whole_group: bool
    shards_at_kill: tuple[int, ...]
    equal: bool


def start(source: Path, output: Path) -> subprocess.Popen[bytes]:
    """The converter with two workers, in a process group of its own."""
    command = [sys.executable, "-m", "data_prep.convert", "--dataset_name", source, "--subset_name", "all"]
    command += ["--output_dir", output, "--rows_per_shard", str(ROWS_PER_SHARD), "--num_workers", "2"]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, start_new_session=True)


def writing_seconds(source: Path, output: Path) -> float:
    """Runs undisturbed; returns the time from the plan to the end."""
    process = start(source, output)
    try:
        begin = wait_for_plan(process, output)
        assert process.wait(_LIMIT_SECONDS) == 0
    finally:
        end(process)
    return time.monotonic() - begin


def run_trial(source: Path, output: Path, seconds: float, number: int, generator: random.Random) -> tuple[int, ...]:
    """Kills once or three times within `seconds` of the plan, then lets the program finish.

    Returns:
        The number of committed shards at each kill that did not come too late.
    """
    committed = []
    for _ in range(1 if number % 3 else 3):
        process = start(source, output)
        try:
            wait_for_plan(process, output)
            time.sleep(generator.uniform(0, seconds))
            if number % 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            if process.wait(_LIMIT_SECONDS) == -signal.SIGKILL:  # else it had ended before
                committed.append(len(list(output.rglob("*-*.json"))))
        finally:
            if number % 2:
                end(process)
    process = start(source, output)
    try:
        assert process.wait(_LIMIT_SECONDS) == 0
    finally:
        end(process)
    return tuple(committed)


def wait_for_plan(process: subprocess.Popen[bytes], output: Path) -> float:
    """Waits until the program has begun to write; returns the time."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not (output / "plan.json").exists():
        assert process.poll() is None, "the converter has ended before its plan"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return time.monotonic()


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of a process group that was started here."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_LIMIT_SECONDS)


def run_trials(source: Path, work: Path, trials: int, seed: int) -> list[Trial]:
    """Runs all trials below `work`."""
    generator = random.Random(seed)
    seconds = writing_seconds(source, work / "undisturbed")
    expected = tree(work / "undisturbed")
    results = []
    for number in range(trials):
        output = work / f"trial-{number}"
        committed = run_trial(source, output, seconds, number, generator)
        results.append(Trial(bool(number % 2), committed, tree(output) == expected))
    return results


def main() -> None:
    """Parses the command line, runs the trials, prints each."""
    parser = argparse.ArgumentParser(prog="python -m tests.data_prep.kill_trials")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build_mini_mmeb(Path(folder) / "mini", scale=0.05)
        source = Path(folder) / "mini" / TRAIN_FOLDER
        results = run_trials(source, Path(folder), arguments.trials, arguments.seed)
        shards = len(list((Path(folder) / "undisturbed").rglob("*.tar")))
    for number, trial in enumerate(results):
        what = "all processes" if trial.whole_group else "the program only"
        moments = ", ".join(f"{count} of {shards} shards" for count in trial.shards_at_kill) or "its end"
        print(f"trial {number:2}: killed {what} at {moments}: {'equal' if trial.equal else 'DIFFERENT'}")
    kills = sum(len(trial.shards_at_kill) for trial in results)
    equal = sum(trial.equal for trial in results)
    print(f"{kills} kills in {len(results)} trials; {equal} ended with the bytes of an undisturbed run")
    sys.exit(equal != len(results))


if __name__ == "__main__":
    main()
