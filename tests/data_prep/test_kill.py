from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trials.kills import make_own_pairs, run_trials
from trials.rig.patience import HANG_SECONDS

TRIALS = 2  # four kills; `python -m trials.kills` runs more


def test_killed_and_started_again_the_shards_are_the_same(mini_mmeb_dir: Path, tmp_path: Path) -> None:
    results = run_trials(mini_mmeb_dir / "MMEB-train", tmp_path, TRIALS, seed=0)
    assert all(trial.equal for trial in results)
    assert any(trial.shards_at_kill for trial in results)


def test_pairs_with_several_images_and_negatives_too(tmp_path: Path) -> None:
    (trial,) = run_trials(make_own_pairs(tmp_path / "own"), tmp_path, 1, seed=0)
    assert trial.equal
    assert json.loads((tmp_path / "undisturbed/manifest.json").read_text())["schema_version"] == 3


def test_workers_end_with_the_program(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from data_prep.processes import run_tasks\n"
        "def work(path):\n"
        "    import os, pathlib\n"
        "    pathlib.Path(path, str(os.getpid())).touch()\n"
        "    time.sleep(10 * 3600)\n"
        f"list(run_tasks(work, [{str(tmp_path)!r}] * 2, 2))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        workers = [int(path.name) for path in tmp_path.iterdir()]
        process.kill()
        process.wait(HANG_SECONDS)
        wait_until(lambda: not any(map(is_running, workers)))
    finally:
        process.kill()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("seconds_between", [0, 1], ids=["all tasks handed in", "tasks are being handed in"])
def test_a_worker_that_dies_is_one_line(seconds_between: int) -> None:
    script = (
        "import os, sys, time\n"
        "from data_prep.processes import run_tasks\n"
        "from vlm2vec.errors import run_program\n"
        f"def work(task): os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "class Tasks(list):\n"
        "    def __iter__(self):\n"
        "        for task in super().__iter__():\n"
        "            yield task\n"
        f"            time.sleep({seconds_between})\n"
        "sys.exit(run_program(lambda: list(run_tasks(work, Tasks([1, 2, 3]), 2)) and 0))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: a worker process died")
    assert result.stderr.count("\n") == 1
