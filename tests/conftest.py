"""Fixtures that several parts share; each is built once, whichever of the test processes asks for it first.

What builds them is imported there: the process that hands the tests out reads this file too, before it starts the
others, and needs neither torch nor transformers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from tests.rig.processors import imitate_processor

imitate_processor()
# Before torch and NumPy are imported. The test processes share the cores: a second thread in each would only wait for
# a core, and spend CPU time on waiting.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The numbers are those of CPUs, also on a machine with a GPU.
os.environ.setdefault("DS_ACCELERATOR", "cpu")

MINI_SCALE = 0.02
# Files that take longest, longest first; whichever began last would run alone at the end.
LONGEST = (
    "tests/distributed/test_exactness.py",
    "tests/benchmarks/test_gpu.py",
    "tests/distributed/test_training.py",
    "tests/distributed/test_two_nodes.py",
    "tests/distributed/test_resume.py",
    "tests/distributed/test_memory.py",
    "tests/distributed/",
    "tests/eval/test_ranks.py",
    "tests/test_compiling.py",
    "tests/batches/test_loader.py",
    "tests/export/",
    "tests/plan/",
)
ROWS_PER_SHARD = 16

# Gives the folder of this name, filled by the function if it is not there yet.
Once = Callable[[str, Callable[[Path], object]], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the `LONGEST` files first; xdist hands files out in this order (`--no-loadscope-reorder`)."""

    def place(item: pytest.Item) -> int:
        return next((i for i, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """What builds shared folders, see https://pytest-xdist.readthedocs.io/en/stable/how-to.html."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def build(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()  # a builder that failed before fails here again
                fill(folder)
                done.touch()
        return folder

    return build


@pytest.fixture(scope="session")
def forked_python() -> Iterator[Path]:
    """A `python` for what starts programs: they find their imports done."""
    from trials.rig.forked_python import forked_python

    with forked_python() as program:
        yield program


@pytest.fixture(scope="session")
def mini_mmeb_dir(once: Once) -> Path:
    """A folder with a small MMEB-train (28 to 30 rows each) and MMEB-eval (12 rows a dataset); do not write to it."""
    from data_prep.mini_mmeb import EVAL_FOLDER, TRAIN_FOLDER, VISDOC_FOLDER, build_mini_mmeb

    root = once("mini_mmeb", lambda folder: build_mini_mmeb(folder, seed=0, scale=MINI_SCALE))
    assert {path.name for path in root.iterdir()} == {TRAIN_FOLDER, EVAL_FOLDER, VISDOC_FOLDER}
    return root


@pytest.fixture(scope="session")
def mini_shards_dir(mini_mmeb_dir: Path, once: Once) -> Path:
    """All subsets of `mini_mmeb_dir` as shards of 16 rows, so that each subset has two; do not write to it."""
    from data_prep.conversion import convert
    from data_prep.conversion_plan import DEFAULT_OPTIONS
    from data_prep.mini_mmeb import TRAIN_FOLDER
    from data_prep.source import SourceData

    train = mini_mmeb_dir / TRAIN_FOLDER
    return once(
        "mini_shards",
        lambda folder: convert(
            SourceData(train, train, ["all"]), folder, replace(DEFAULT_OPTIONS, rows_per_shard=ROWS_PER_SHARD)
        ),
    )


@pytest.fixture(scope="session")
def golden_model_dir(once: Once) -> Path:
    """The reference model of tests/data/golden as a complete checkpoint folder; do not write to it."""
    from tests.rig.golden import write_model_folder

    return once("golden", lambda folder: write_model_folder(folder / "model")) / "model"


@pytest.fixture(scope="session")
def mini_model_dir(mini_mmeb_dir: Path, once: Once) -> Path:
    """The miniature's untrained model as a checkpoint folder; do not write to it."""
    from data_prep.mini_mmeb import TRAIN_FOLDER
    from data_prep.mini_model import build_mini_model

    train = mini_mmeb_dir / TRAIN_FOLDER
    return once("mini_model", lambda folder: build_mini_model(train, folder / "untrained", seed=0)) / "untrained"


@pytest.fixture(scope="session")
def engine_runs_dir(mini_model_dir: Path, golden_model_dir: Path, once: Once) -> Path:
    """Checkpoints of short runs on 2 ranks, a folder for each of `engine_runs.RUNS`; do not write to it."""
    from tests.rig.engine_runs import train_engines

    return once("engine_runs", lambda folder: train_engines(mini_model_dir, golden_model_dir, folder))
