"""The benchmark of startup times reads the log of a real run."""

from __future__ import annotations

from pathlib import Path

from benchmarks.startup import MOMENTS, moments_of_a_run


def test_every_moment_is_found_in_a_run(mini_model_dir: Path, mini_shards_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(mini_model_dir)
    (tmp_path / "shards").symlink_to(mini_shards_dir)
    found = moments_of_a_run(tmp_path)
    assert list(found) == list(MOMENTS)
    assert list(found.values()) == sorted(found.values())
