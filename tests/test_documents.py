"""README and docs/ name files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# `path/name.ext` of a source or document, and links that are no addresses.
NAMED = re.compile(r"`([\w./-]+\.(?:py|md|sh|sbatch|j2|toml))`|\]\((?!https?:|#)([^)#]+)")
# What programs write to a user's folder, and files of the original work.
ELSEWHERE = {"report.md", "vlm2vec_module.py", "eval.py", "train.py"}


FOLDERS = ("vlm2vec", "data_prep", "eval", "launch", "ds_configs", "benchmarks", "examples", "tests", "docs", "trials")


@pytest.fixture(scope="module")
def paths() -> list[str]:
    """Files of the repository, each with a slash in front."""
    below = (path for name in FOLDERS for path in (REPOSITORY / name).rglob("*"))
    return [f"/{path.relative_to(REPOSITORY).as_posix()}" for path in (*REPOSITORY.iterdir(), *below)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_cited_files_exist(document: Path, paths: list[str]) -> None:
    names = {first or second for first, second in NAMED.findall(document.read_text(encoding="utf-8"))}
    absent = {
        name
        for name in names - ELSEWHERE
        if not (document.parent / name).exists() and not any(path.endswith(f"/{name}") for path in paths)
    }
    assert absent == set()


def test_wheels_for_an_older_driver_are_the_version_that_make_installs() -> None:
    """Else `make install` would replace them by PyPI's."""
    named = re.findall(r"install torch==(\S+) --index-url", DOCUMENTS[0].read_text(encoding="utf-8"))
    pinned = re.findall(r"^torch==(\S+)$", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert named == pinned
