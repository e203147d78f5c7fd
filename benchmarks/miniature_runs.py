"""Trains and scores the demo's miniature with other flags; finished runs are kept, so that a killed suite continues."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm2vec.errors import InputError
from vlm2vec.files import committed
from vlm2vec.mmeb import META_TASKS

RECIPE = "launch/recipes/mini.yaml"
ENGINE = "ds_configs/zero2.json"
GROUPS = ("overall", *META_TASKS)
# Number of lines of a failed program that are shown.
_TAIL = 15


@dataclass(frozen=True)
class MiniatureRuns:
    """Runs of one suite.

    Attributes:
        demo: The demo's folder.
        folder: The folder of the results, and of runs in progress.
    """

    demo: Path
    folder: Path

    def train(self, model: Path, flags: Sequence[str], output: Path) -> None:
        """Trains `model` in one process with the demo's recipe and `flags`, and exports it to `output`."""
        run = output.with_name(f"{output.name}-run")
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(output, ignore_errors=True)
        recipe = ["--config", RECIPE, "--deepspeed", ENGINE, "--model_name", str(model)]
        place = ["--dataset_name", str(self.demo / "shards"), "--output_dir", str(run)]
        program("vlm2vec.train", *recipe, *place, *flags)
        program("vlm2vec.export", str(run), str(output))
        shutil.rmtree(run)

    def score(self, model: Path) -> dict[str, float]:
        """Precision@1 of groups of datasets, in percent."""
        dataset, scores = self.demo / "mini" / "MMEB-eval", model.with_name(f"{model.name}-scores")
        shutil.rmtree(scores, ignore_errors=True)
        data = ["--dataset_name", str(dataset), "--subset_name", "all", "--image_dir", str(dataset / "images")]
        program("eval.mmeb", "--model_name", str(model), *data, "--encode_output_path", str(scores))
        found = read_groups(scores)
        shutil.rmtree(scores)
        return found

    def result(self, name: str, model: Path, flags: Sequence[str], key: Sequence[Any]) -> dict[str, float]:
        """A finished run's scores, from its file or by running it.

        Args:
            name: What the run is called in its file and in the line that is printed when it ends.
            model: The model that is trained.
            flags: Flags besides the demo's recipe.
            key: What the result depends on, as JSON.
        """
        digest = hashlib.sha256(json.dumps([*key, Path(RECIPE).read_text(encoding="utf-8")]).encode()).hexdigest()[:12]
        done = self.folder / f"{digest}.json"
        if not done.exists():
            trained = self.folder / digest
            started = time.monotonic()
            self.train(model, flags, trained)
            scores = self.score(trained)
            shutil.rmtree(trained)
            with committed(done) as temporary:
                temporary.write_text(json.dumps({"run": name, "scores": scores}, indent=1) + "\n")
            seconds = time.monotonic() - started
            print(f"{name}: {scores['overall']:.1f} ({seconds:.0f} s)", file=sys.stderr, flush=True)
        found: dict[str, float] = json.loads(done.read_text())["scores"]
        return found


def over_seeds(
    names: Sequence[str], seeds: Sequence[int], at_once: int, result: Callable[[str, int], dict[str, float]]
) -> dict[str, list[dict[str, float]]]:
    """The scores of every name with every seed, by name.

    Seed by seed, so that an interrupted comparison has the same seeds for all names.

    Args:
        names: What is compared.
        seeds: At least two different ones.
        at_once: Number of runs at a time.
        result: The scores of a name and a seed.

    Raises:
        InputError: A spread cannot be computed from fewer seeds.
    """
    if len(set(seeds)) < 2:
        raise InputError("--seeds: give at least two different seeds, a spread needs them")
    runs = [(name, seed) for seed in seeds for name in names]
    with ThreadPoolExecutor(at_once) as pool:
        scores = dict(zip(runs, pool.map(lambda run: result(*run), runs), strict=True))
    return {name: [scores[name, seed] for seed in seeds] for name in names}


def read_groups(scores: Path) -> dict[str, float]:
    """Precision@1 of groups of datasets in percent, from a folder of `eval.mmeb`."""
    found = json.loads((scores / "scores.json").read_text(encoding="utf-8"))
    every: Mapping[str, Any] = {**found, **found["meta_tasks"]}
    return {name: 100 * each["acc"] for name, each in every.items() if name in GROUPS}


def program(module: str, *flags: str) -> None:
    """Runs a program of this repository in a separate process, with one thread unless OMP_NUM_THREADS says otherwise.

    Two runs at a time with a thread per core each waited for one another's threads: a step took ten times as long.

    Raises:
        InputError: The program failed; the message has the end of its output.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *flags],
        env={"OMP_NUM_THREADS": "1", **os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-_TAIL:])
        raise InputError(f"python -m {module} {' '.join(flags)} ended with {done.returncode}:\n{tail}")
