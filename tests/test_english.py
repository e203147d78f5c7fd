"""Words that the word list of CONTRIBUTING.md replaces do not come back into code, messages and documents."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
# Folders and files that are checked: in Python files docstrings, other strings and comments, in others every line.
PLACES = ("vlm2vec", "data_prep", "eval", "benchmarks", "trials", "launch", "docs")
SUFFIXES = (".py", ".md", ".sh", ".sbatch", ".yaml", ".toml", ".j2", ".html")
# A pattern and what to write instead: only words that are wrong wherever they occur in this repository.
WRONG = {
    r"pictures?": "image",
    r"so many": "N, at most N, the number of ...",
    r"(is|are|was|were|be|been) dealt|dealt (to|anew)": "distributed",
    r"data sets?": "dataset",
    r"torn": "incomplete, damaged",
    r"go(es)? on|went on|gone on": "continues, resumes",
    r"strangers?": "mismatched ranks, an untrusted source",
    r"(is|are|was|were|be) told": "is reported, is given, receives",
    r"told apart": "distinguished",
    r"(hang|hangs|hung) on": "is decided by",
    r"stands (in|there|before|behind|beside|more|first|alone)": "is, occurs, means",
    r"mend(s|ed|ing)?": "repair, fix",
}
# Patterns that are data in a file, such as prompts.
ALLOWED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "vlm2vec/export/check.py",
            "data_prep/mini/prompts.py",
            "benchmarks/loader.py",
            "benchmarks/synthetic_eval.py",
        ),
        (r"pictures?",),
    ),
    "docs/serving.md": (r"pictures?",),  # a folder's name
}
_PATTERNS = {wrong: re.compile(rf"\b(?:{wrong})\b", re.IGNORECASE) for wrong in WRONG}


def checked_files(place: str) -> list[Path]:
    """The files of a place whose text is ours: published configurations are not."""
    root = REPOSITORY / place
    found = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    return [path for path in found if path.suffix in SUFFIXES and "published" not in path.parts]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and texts of a file that people read."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(content.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split())  # a phrase may continue on the next line


def faults_of(path: Path) -> list[str]:
    """Words that are wrong in a file, each with its line, what to write instead, and the text around it."""
    name = path.relative_to(REPOSITORY).as_posix()
    found = (
        (line, wrong, match, text)
        for line, text in texts(path)
        for wrong, pattern in _PATTERNS.items()
        if wrong not in ALLOWED.get(name, ())
        for match in pattern.finditer(text)
    )
    return [
        f"{name}:{line}: {match[0]!r}, write {WRONG[wrong]}: {text[max(0, match.start() - 40) : match.end() + 40]}"
        for line, wrong, match, text in found
    ]


@pytest.mark.parametrize("place", PLACES)
def test_words_of_the_list_are_not_used(place: str) -> None:
    files = checked_files(place)
    assert files
    assert [fault for path in files for fault in faults_of(path)] == []


def test_comments_docstrings_and_messages_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.REPOSITORY", tmp_path)
    code = tmp_path / "code.py"
    code.write_text('"""A run that goes\non."""\n\n# so many chunks\nprint(f"{1} torn files")\ntorn = "worn"\n')
    assert [fault.split(",")[0] for fault in faults_of(code)] == [
        "code.py:4: 'so many'",
        "code.py:1: 'goes on'",
        "code.py:5: 'torn'",
    ]
    page = tmp_path / "page.md"
    page.write_text("fine\na Picture\n")
    assert [fault.split(",")[0] for fault in faults_of(page)] == ["page.md:2: 'Picture'"]
