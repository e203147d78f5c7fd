"""The commands of README and docs/ that are marked as runnable do run, on small stand-ins for the demo's files.

Those marked as slow are run by `python -m trials.documents`, on a demo.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from trials.rig.documents import Block, prepare, run_block, runnable_blocks
from trials.rig.forked import are_gone
from trials.rig.launcher import REPOSITORY
from trials.rig.patience import HANG_SECONDS

BLOCKS = [block for block in runnable_blocks() if not block.is_slow]


@pytest.fixture(scope="module")
def reader(
    mini_mmeb_dir: Path,
    mini_shards_dir: Path,
    mini_model_dir: Path,
    engine_runs_dir: Path,
    forked_python: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, str]]:
    """A folder with a demo, and the variables for commands in it."""
    folder = tmp_path_factory.mktemp("reader")
    demo = folder / "demo"
    demo.mkdir()
    parts = {"mini": mini_mmeb_dir, "shards": mini_shards_dir, "untrained": mini_model_dir}
    for name, target in {**parts, "run": engine_runs_dir / "zero2"}.items():
        (demo / name).symlink_to(target)
    variables = prepare(folder, forked_python)
    steps = (
        "python -m vlm2vec.export demo/run demo/trained",
        "python -m eval.mmeb --model_name demo/untrained --dataset_name demo/mini/MMEB-eval --subset_name all "
        "--image_dir demo/mini/MMEB-eval/images --encode_output_path demo/scores/untrained",
    )
    for step in steps:  # as launch/demo.sh does
        subprocess.run(step.split(), cwd=folder, env=variables, check=True, timeout=HANG_SECONDS, capture_output=True)
    return folder, variables


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_runnable_block_runs(block: Block, reader: tuple[Path, dict[str, str]]) -> None:
    outcome = run_block(block, *reader, HANG_SECONDS)
    assert outcome.exit_code == 0, outcome.output[-4000:]


def test_every_mark_marks_a_block() -> None:
    """A mark that no block follows, or with a word that is not known, would run nothing."""
    for path in (REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")):
        marks = len(re.findall(r"<!--\s*runnable", path.read_text(encoding="utf-8")))
        page = path.relative_to(REPOSITORY).as_posix()
        assert marks == sum(block.page == page for block in runnable_blocks()), page


def test_a_failing_command_fails_its_block_and_nothing_of_it_is_left(tmp_path: Path, forked_python: Path) -> None:
    variables = prepare(tmp_path, forked_python)
    block = Block("page", 1, "bash", "echo $$\nsleep 3600 &\nfalse | true\necho went on\n", is_slow=False)
    outcome = run_block(block, tmp_path, variables, HANG_SECONDS)
    assert outcome.exit_code == 1
    assert are_gone([int(outcome.output)])
