"""The structure of the source: which package may import which, no import cycles, small folders, few parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SOURCES = ("vlm2vec", "eval", "data_prep", "benchmarks", "examples", "trials")
MAX_FILES = 14
MAX_PARAMETERS = 8

# All units of the source, from the top layer to the bottom one. A module may import units of the layers below its own,
# and modules of its own unit: nothing above, and no other unit of its layer. A unit is a package or module of vlm2vec,
# or a folder of programs. "vlm2vec" is the public API, `vlm2vec/__init__.py`.
LAYERS = (
    ("tests",),
    ("benchmarks",),
    ("trials",),
    # Programs.
    ("train", "eval", "data_prep", "examples"),
    ("doctor", "average"),
    ("plan", "export"),
    ("training",),
    ("evaluation",),
    ("batches",),
    # One model, and the way of an item to it.
    ("vlm2vec", "sentence_transformer"),
    ("encoder", "compiling"),
    ("inputs", "lora"),
    ("mined",),
    ("shards", "contrastive"),
    # The model's own code, and files.
    ("model_folder",),
    ("backbones",),
    ("images", "dora", "installed"),
    # What everything may use.
    ("ranks", "mmeb", "mmeb_v2", "formats", "item_rules", "choices"),
    ("device", "elementwise"),
    ("files", "messages"),
    ("errors",),
)
# Usable without the rest of the library: a unit, and all that it may import.
ALONE = {"contrastive": ("errors",)}
# Public faces with options that are given by name.
MANY_PARAMETERS = {"vlm2vec.encoder.VLM2Vec.from_pretrained"}


@dataclass(frozen=True)
class Module:
    """A module of the source.

    Attributes:
        name: With its packages.
        file: Its path from the repository's root.
        tree: What it says.
    """

    name: str
    file: Path
    tree: ast.Module

    @property
    def unit(self) -> str:
        """Its place in `LAYERS`."""
        return unit_of(self.name)


@cache
def modules() -> dict[str, Module]:
    """All modules of the source, by name."""
    found = {}
    for path in sorted(path for folder in SOURCES for path in (REPOSITORY / folder).rglob("*.py")):
        file = path.relative_to(REPOSITORY)
        parts = file.parent.parts if file.stem == "__init__" else file.with_suffix("").parts
        found[".".join(parts)] = Module(".".join(parts), file, ast.parse(path.read_text(encoding="utf-8")))
    return found


@cache
def imports() -> dict[str, list[str]]:
    """The project's modules that each module imports: at the top, inside functions, and for type checks alone."""
    known = modules()
    return {
        name: [
            imported for imported in imported_names(module.tree, known) if imported.split(".")[0] in (*SOURCES, "tests")
        ]
        for name, module in known.items()
    }


def imported_names(tree: ast.Module, known: dict[str, Module]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            for alias in node.names:
                member = f"{node.module}.{alias.name}"
                yield member if member in known else str(node.module)


def unit_of(module: str) -> str:
    first, *rest = module.split(".")
    return rest[0] if first == "vlm2vec" and rest else first


def mistaken(importing: str, imported: str) -> bool:
    """Whether an import does not run downwards."""
    levels = {unit: level for level, units in enumerate(LAYERS) for unit in units}
    upper, lower = unit_of(importing), unit_of(imported)
    return upper != lower and (levels[upper] >= levels[lower] or lower not in ALONE.get(upper, (lower,)))


def functions(tree: ast.AST, inside: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """All functions and methods with their full names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{inside}.{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node
            yield from functions(node, name)
        else:
            yield from functions(node, inside)


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many there are, without self and cls."""
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def cycles(graph: dict[str, list[str]]) -> list[list[str]]:
    """Modules that import one another, directly or through others (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        path.append(name)
        for target in graph.get(name, []):
            if target not in order:
                visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in path:
                lowest[name] = min(lowest[name], order[target])
        if lowest[name] == order[name]:
            members = path[path.index(name) :]
            del path[path.index(name) :]
            if len(members) > 1 or name in graph.get(name, []):
                found.append(sorted(members))

    for name in graph:
        if name not in order:
            visit(name)
    return found


def test_every_unit_has_one_place_in_the_table() -> None:
    units = [unit for row in LAYERS for unit in row]
    assert len(units) == len(set(units))
    assert {module.unit for module in modules().values()} - set(units) == set()


def test_imports_run_downwards() -> None:
    wrong = {(name, each) for name, imported in imports().items() for each in imported if mistaken(name, each)}
    assert wrong == set()


def test_no_modules_import_one_another() -> None:
    assert cycles(imports()) == []


def test_no_folder_of_the_library_is_too_full() -> None:
    files: dict[str, int] = {}
    for module in modules().values():
        if module.file.parts[0] == "vlm2vec":
            files[str(module.file.parent)] = files.get(str(module.file.parent), 0) + 1
    too_full = {folder: count for folder, count in files.items() if count > MAX_FILES}
    assert too_full == {}


def test_no_function_takes_too_many_parameters() -> None:
    many = {
        full_name: num_parameters(function)
        for name, module in modules().items()
        for full_name, function in functions(module.tree, name)
        if num_parameters(function) > MAX_PARAMETERS and full_name not in MANY_PARAMETERS
    }
    assert many == {}


@pytest.mark.parametrize(
    ("importing", "imported"),
    [
        ("vlm2vec.errors", "vlm2vec.files"),  # upwards
        ("vlm2vec.plan.meta", "vlm2vec.export.card"),  # to a different unit of the same layer
        ("vlm2vec.contrastive.loss", "vlm2vec.shards"),
        ("vlm2vec.contrastive.loss", "vlm2vec.files"),  # downwards, but contrastive stands alone
        ("vlm2vec.train", "benchmarks.step"),
    ],
)
def test_imports_that_would_be_mistaken(importing: str, imported: str) -> None:
    assert mistaken(importing, imported)


def test_what_an_import_is() -> None:
    text = (
        "import vlm2vec.errors\nif TYPE_CHECKING:\n    from vlm2vec import files\ndef f():\n    from eval import page\n"
    )
    assert list(imported_names(ast.parse(text), modules())) == ["vlm2vec.errors", "vlm2vec.files", "eval.page"]


def test_cycles_are_found_through_others() -> None:
    assert cycles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]


def test_all_kinds_of_parameters_are_counted() -> None:
    tree = ast.parse("class A:\n    def f(self, a, /, b, *, c, d=1): ...\n")
    assert [(name, num_parameters(function)) for name, function in functions(tree, "m")] == [("m.A.f", 4)]
