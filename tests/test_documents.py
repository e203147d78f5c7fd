"""README and docs/ name files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_layers import LAYERS

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
ARCHITECTURE = REPOSITORY / "docs/architecture.md"
# `path/name.ext` of a source or document, and links that are no addresses.
NAMED = re.compile(r"`([\w./-]+\.(?:py|md|sh|sbatch|j2|toml))`|\]\((?!https?:|#)([^)#]+)")
# What programs write to a user's folder, and files of the original work.
ELSEWHERE = {
    *("report.md", "vlm2vec_module.py", "eval.py", "train.py"),
    *("draw.py", "search.py", "heldout.py"),  # scripts whose content a page gives
    *("scripts/qwen3_vl_embedding.py", "modeling_gme_qwen2vl.py"),  # of published models
}


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


def test_the_architecture_names_files_from_the_root_and_what_is_in_them() -> None:
    """A moved file is found by its whole path, a renamed class or function by its item's files: one of them says it."""
    wrong = []
    for item in items(ARCHITECTURE.read_text(encoding="utf-8")):
        words = re.findall(r"`([^`]+)`", item)
        named = [REPOSITORY / word for word in words if re.fullmatch(r"[\w.-]+/[\w./-]*", word)]
        wrong += [str(path) for path in named if not path.exists()]
        content = " ".join(path.read_text(encoding="utf-8") for path in named if path.is_file())
        names = [word.rpartition(".")[2] for word in words if re.fullmatch(r"[A-Za-z_][\w.]*", word)]
        wrong += [name for name in names if content and not re.search(rf"\b{name}\b", content)]
    assert wrong == []


def items(text: str) -> list[str]:
    """Paragraphs, list items and rows of tables, each on one line; no code blocks."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"\n(?=\d+\. |- |\| )|\n\n", text)
    return [" ".join(part.split()) for part in parts if part.strip()]


def test_the_architecture_draws_the_rooms_that_the_imports_are_held_to() -> None:
    blocks = re.findall(r"^```\n(.*?)^```$", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (drawn,) = (block for block in blocks if block.startswith("tests"))
    assert [tuple(line.split("  ")[0].split(", ")) for line in drawn.splitlines()] == list(LAYERS)


def test_wheels_for_an_older_driver_are_the_version_that_make_installs() -> None:
    """Else `make install` would replace them by PyPI's."""
    named = re.findall(r"install torch==(\S+) --index-url", DOCUMENTS[0].read_text(encoding="utf-8"))
    pinned = re.findall(r"^torch==(\S+)$", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert named == pinned
