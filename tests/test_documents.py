"""README and docs/ refer only to files, flags, programs, headings and messages that exist."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.test_layers import LAYERS, modules
from trials.rig.documents import listed_pages, runnable_blocks

REPOSITORY = Path(__file__).parents[1]
MAX_README_LINES = 150
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
ARCHITECTURE = REPOSITORY / "docs/architecture.md"
# Pages for a task: a reader copies the first command, which runs on what `make demo` leaves behind.
TASKS = (
    *("adding_a_backbone", "architecture", "checkpoints", "cluster", "data", "evaluation", "export", "install"),
    *("losses", "mining", "monitoring", "own_data", "prompts", "retrieval", "serving", "training", "troubleshooting"),
)
# Flags of other programs: pip, deepspeed, tensorboard, hf, docker, sbatch, ssh, and the original's.
FOREIGN_FLAGS = {
    *("constraint", "index-url", "no-deps", "module", "num_gpus", "master_port", "include", "logdir", "quiet"),
    *("repo-type", "local-dir", "shm-size", "nodes", "gpus-per-node", "ntasks-per-node", "time", "signal", "oldest"),
    *("image_resolution", "help", "file", "tag", "rm", "volume", "user", "env", "build-arg"),
}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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


def test_the_architecture_draws_the_layers_that_imports_must_keep() -> None:
    blocks = FENCED.findall(ARCHITECTURE.read_text(encoding="utf-8"))
    (drawn,) = (text for language, text in blocks if not language and text.startswith("tests"))
    assert [tuple(line.split("  ")[0].split(", ")) for line in drawn.splitlines()] == list(LAYERS)


def test_wheels_for_an_older_driver_are_the_version_that_make_installs() -> None:
    """Else `make install` would replace them by PyPI's."""
    pages = (DOCUMENTS[0], REPOSITORY / "docs/install.md")
    named = [re.findall(r"install torch==(\S+) --index-url", path.read_text(encoding="utf-8")) for path in pages]
    pinned = re.findall(r"^torch==(\S+)$", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert named == [pinned, pinned]


def test_the_readme_is_a_first_page() -> None:
    assert len(DOCUMENTS[0].read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_all_pages_are_listed_and_in_the_site() -> None:
    """Once each: docs/README.md lists them for readers of the repository, mkdocs.yml for those of the site."""
    docs = REPOSITORY / "docs"
    expected = {path.relative_to(docs).as_posix() for path in DOCUMENTS[1:]}
    listed = [path.relative_to(docs).as_posix() for path in listed_pages()]
    assert sorted(listed) == sorted(expected - {"README.md"})
    navigation = re.findall(r"^ +- .+: (\S+\.md)$", (REPOSITORY / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    of_docs = [name for name in navigation if not name.startswith("files/")]  # others are outside of docs/
    assert sorted(of_docs) == sorted(expected | {"index.md"})  # which is README.md


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_headings(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", document.read_text(encoding="utf-8"))
    lost = [f"{name}#{anchor}" for name, anchor in links if anchor not in anchors(document.parent / name, document)]
    assert lost == []


def anchors(target: Path, document: Path) -> set[str]:
    """A page's headings as GitHub links to them; of the document itself if the target is its folder."""
    text = (document if target.is_dir() else target).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_contents_of_the_decisions_name_all_of_them() -> None:
    text = (REPOSITORY / "docs/decisions.md").read_text(encoding="utf-8")
    named = re.findall(r"^- \[(.+)\]\(#", text, re.MULTILINE)
    assert sorted(named) == sorted(set(re.findall(r"^## (.+)$", text, re.MULTILINE)) - {"Contents"})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_rows_of_a_table_have_the_cells_of_its_head(document: Path) -> None:
    r"""A bar inside a cell is written `\|`: else it begins the next cell."""
    text = FENCED.sub("", document.read_text(encoding="utf-8"))
    tables = re.findall(r"(?:^ *\|.*\n)+", text, re.MULTILINE)
    rows = [(row, table.splitlines()[0]) for table in tables for row in table.splitlines()]
    assert [row for row, head in rows if num_bars(row) != num_bars(head)] == []


def num_bars(row: str) -> int:
    return len(re.findall(r"(?<!\\)\|", row))


@pytest.mark.parametrize("name", TASKS)
def test_a_page_for_a_task_opens_with_a_command_that_runs_on_the_demo(name: str) -> None:
    text = (REPOSITORY / f"docs/{name}.md").read_text(encoding="utf-8")
    opening, *_ = (block for block in runnable_blocks() if block.page == f"docs/{name}.md")
    assert opening.language == "bash"
    assert re.search(r"\bdemo\b", opening.text)
    # First of all, or after what has to be installed for it.
    assert opening.text in [block for _, block in FENCED.findall(text)[:2]]


def test_the_page_of_the_demo_opens_with_it() -> None:
    language, block = FENCED.findall((REPOSITORY / "docs/demo.md").read_text(encoding="utf-8"))[0]
    assert (language, block.split()[:2]) == ("bash", ["make", "demo"])


@cache
def blocks(language: str) -> list[tuple[str, str]]:
    """Fenced blocks of a language in all documents, each with its document's name."""
    found = [(path.name, FENCED.findall(path.read_text(encoding="utf-8"))) for path in DOCUMENTS]
    return [(name, text) for name, each in found for kind, text in each if kind == language]


def test_python_in_the_documents_compiles() -> None:
    for name, text in blocks("python"):
        compile(text, name, "exec")


def test_commands_in_the_documents_are_of_programs_that_exist() -> None:
    assert len(blocks("bash")) > 30
    for _, text in blocks("bash"):
        runnable = text.replace("<this repository>", "URL")
        subprocess.run(["bash", "-n"], input=runnable, text=True, check=True, timeout=60)
        for name in re.findall(r"(?:python -m|--module) ([\w.]+)", text):
            path = REPOSITORY / name.replace(".", "/")
            is_ours = path.with_suffix(".py").exists() or (path / "__main__.py").exists()
            assert is_ours or name in ("venv", "pip", "json.tool"), name
        for file in re.findall(r"(?<![\w/.])(?:launch|ds_configs|examples|benchmarks)/[\w./-]+", text):
            assert (REPOSITORY / file).exists(), file


def test_flags_in_the_documents_are_in_the_programs() -> None:
    added = {text[2:] for text in literals() if re.fullmatch(r"--[\w-]+", text)}
    known = FOREIGN_FLAGS | added | set(field_names()) | set(strings(modules()["vlm2vec.training.modes"].tree))
    unknown = {
        f"{path.name}: --{flag}"
        for path in DOCUMENTS
        for flag in re.findall(r"(?<![\w#-])--([a-z][\w-]*\w)", path.read_text(encoding="utf-8"))
        if not {flag, flag.removeprefix("no_")} & known
    }
    assert unknown == set()


def test_messages_under_troubleshooting_are_in_the_programs() -> None:
    text = (REPOSITORY / "docs/troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (.*?) (?<!\\)\|", text.replace("\\|", "\0"), re.MULTILINE)
    messages = [span for cell in cells for span in re.findall(r"`([^`]* [^`]*)`", cell.replace("\0", "|"))]
    assert len(messages) > 30
    parts = {part.strip(" :;,'") for message in messages for part in message.split("...")} - {""}
    assert {part for part in parts if not any(part in literal for literal in literals())} == set()


@cache
def literals() -> set[str]:
    """All strings of the source; what an f-string fills in is a zero byte."""
    return {text for module in modules().values() for text in strings(module.tree)}


def strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)


def field_names() -> Iterator[str]:
    """Annotated names in classes: fields of dataclasses, which are flags."""
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id
