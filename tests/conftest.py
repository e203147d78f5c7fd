"""Fixtures that several parts share; each is built once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.convert import convert
from data_prep.mini_mmeb import EVAL_FOLDER, TRAIN_FOLDER, build_mini_mmeb
from data_prep.mini_model import build_mini_model
from tests.distributed.engine_runs import train_engines
from tests.golden import write_model_folder

MINI_SCALE = 0.02
ROWS_PER_SHARD = 16


@pytest.fixture(scope="session")
def mini_mmeb_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small MMEB-train (28 to 30 rows each) and MMEB-eval (12 rows a dataset); do not write to it."""
    root = tmp_path_factory.mktemp("mini_mmeb")
    build_mini_mmeb(root, seed=0, scale=MINI_SCALE)
    assert {path.name for path in root.iterdir()} == {TRAIN_FOLDER, EVAL_FOLDER}
    return root


@pytest.fixture(scope="session")
def mini_shards_dir(mini_mmeb_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All subsets of `mini_mmeb_dir` as shards of 16 rows, so that each subset has two; do not write to it."""
    shards = tmp_path_factory.mktemp("mini_shards")
    train = mini_mmeb_dir / TRAIN_FOLDER
    convert(train, train, shards, ["all"], rows_per_shard=ROWS_PER_SHARD)
    return shards


@pytest.fixture(scope="session")
def golden_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model of tests/data/golden as a complete checkpoint folder; do not write to it."""
    return write_model_folder(tmp_path_factory.mktemp("golden") / "model")


@pytest.fixture(scope="session")
def mini_model_dir(mini_mmeb_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's untrained model as a checkpoint folder; do not write to it."""
    folder = tmp_path_factory.mktemp("mini_model") / "untrained"
    build_mini_model(mini_mmeb_dir / TRAIN_FOLDER, folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def engine_runs_dir(mini_model_dir: Path, golden_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of short runs on 2 ranks, a folder for each of `engine_runs.RUNS`; do not write to it."""
    root = tmp_path_factory.mktemp("engine_runs")
    train_engines(mini_model_dir, golden_model_dir, root)
    return root
