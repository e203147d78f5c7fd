"""`--help` of every program: complete, in one form, and with examples that its own parser takes."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from vlm2vec.errors import InputError
from vlm2vec.messages.command_line import HELP_WIDTH, Parser, command_text, spelling
from vlm2vec.plan.run_plan import parse_plan
from vlm2vec.training.flags.option import option
from vlm2vec.training.flags.parser import parser as training_parser
from vlm2vec.training.flags.run import parse_arguments

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("data_prep", "eval", "vlm2vec", "examples", "trials", "benchmarks")
# Programs whose parser is in a different module.
ELSEWHERE = {
    "eval.mmeb": "eval.mmeb_flags",
    "eval.retrieval": "eval.retrieval_flags",
    "vlm2vec.plan": "vlm2vec.plan.run_plan",
    "vlm2vec.train": "vlm2vec.training.flags.parser",
}
# Programs whose flags are checked further than by their types.
PARSE: dict[str, Callable[[Sequence[str]], object]] = {"vlm2vec.train": parse_arguments, "vlm2vec.plan": parse_plan}
# Programs with commands that have a parser each, the function COMMAND_flags.
COMMANDS = {"examples.search_folder": ("search", "index", "find")}
# Started by other programs only; and one that imports MTEB, which takes seconds: tests/test_mteb_example.py has it.
LEFT_OUT = {"trials.rig.forked", "trials.rig.forked_python", "examples.mteb_eval"}


def programs() -> list[str]:
    """Modules that `python -m` runs."""
    found = []
    for folder in FOLDERS:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8"):
                module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
                found.append(module.removesuffix(".__main__"))
    return sorted({*found} - LEFT_OUT)


def parsers_of(program: str) -> list[Parser]:
    module = ELSEWHERE.get(program, program)
    if module == program and (REPOSITORY / program.replace(".", "/") / "__main__.py").is_file():
        module = f"{program}.__main__"
    parsers = []
    for name in [f"{command}_flags" for command in COMMANDS.get(program, ())] or ["parser"]:
        make = getattr(importlib.import_module(module), name, None)
        assert make is not None, f"{module}: needs a function {name}() that returns the program's Parser"
        parser = make()
        assert isinstance(parser, Parser), f"{module}.{name}(): must return a vlm2vec.messages.command_line.Parser"
        parsers.append(parser)
    return parsers


def faults(parser: Parser) -> Iterator[str]:
    """What is wrong with a program's help; each line says what to do."""
    text = parser.format_help()
    yield from (f"longer than {HELP_WIDTH} columns: {line!r}" for line in text.split("\n") if len(line) > HELP_WIDTH)
    if re.search(r"\bNone\b", text):
        yield "the help says None: for a default of None, write into the flag's text what happens if it is not given"
    if not re.fullmatch(r"[A-Z].*\.", parser.description or "", re.DOTALL):
        yield "description: must be sentences, with a capital letter and a period"
    if not parser.examples:
        yield "examples: give at least one command to Parser(examples=...)"
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            name = spelling(action) or str(action.metavar or action.dest)
            yield from (f"{name}: {fault}" for fault in flag_faults(action, text))


def flag_faults(action: argparse.Action, text: str) -> Iterator[str]:
    help_text, name = action.help or "", spelling(action)
    if not re.fullmatch(r"(?:[A-Z`'\"]|\d|--).*\.", help_text, re.DOTALL):
        yield f"its text must begin with a capital letter and end with a period: {help_text!r}"
    if re.search(r"\(?default( is)?[: ]*%\(default\)s|\(default|\(required", help_text):
        yield f"leave out default and 'required', help adds both: {help_text!r}"
    shown = re.findall(rf"^  {re.escape(name)}(?![\w-])", text, re.MULTILINE) if name else ["a positional argument"]
    if len(shown) != 1:
        yield f"is listed {len(shown)} times, not once"
    for choice in action.choices or ():
        if not re.search(rf"(?<!\w){re.escape(str(choice))}(?!\w)", text):
            yield f"its choice {choice} is not in the help"


def words_of(example: str, program: str) -> list[str]:
    """The flags of an example, as a shell splits them."""
    words = shlex.split(example)
    starts = (program, f"{program.replace('.', '/')}.py")
    place = next((number for number, word in enumerate(words) if word in starts), None)
    assert place is not None, f"{program}: the example does not start this program: {example}"
    return words[place + 1 + (program in COMMANDS) :]


@pytest.mark.parametrize("program", programs())
def test_help_is_complete_and_its_examples_parse(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(REPOSITORY)
    for parser in parsers_of(program):
        assert list(faults(parser)) == []
        for example in parser.examples:
            PARSE.get(program, parser.parse_args)(words_of(example, program))


def test_help_of_training_lists_all_flags_in_sections_under_one_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    parser = training_parser()
    text = parser.format_help()
    hidden = {action.dest for action in parser._actions if action.help == argparse.SUPPRESS}
    assert hidden == {"image_dir", "local_rank", "normalize", "lora_use_dora", "grad_cache"}  # the last ones as --no_x
    listed = re.findall(r"^  --([\w-]+)", text, re.MULTILINE)
    known = {action.dest for action in parser._actions} - {"image_dir", "local_rank"}
    assert sorted(listed) == sorted(known)
    assert "--no_normalize" not in text
    assert "--max-steps" not in text
    titles = re.findall(r"^(\w[^:\n]*):$", text, re.MULTILINE)
    assert titles[0] == "options"
    assert titles[-1] == "Examples"
    assert {"Model", "LoRA", "Data", "Mined negatives", "Batch and chunks", "Loss", "Cluster"} <= set(titles)
    assert "  --bf16 [true|false] " in text
    assert "  --order random|block " in text
    assert re.search(r"--output_dir DIR .*\(required\)$", text, re.MULTILINE)
    assert re.search(r"\(default: 0\.02\)$", text, re.MULTILINE)


def test_help_of_training_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom vlm2vec.training.flags.parser import parser\nparser().format_help()\n"
        "print([name for name in ('torch', 'deepspeed', 'peft') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr


def test_faults_are_named() -> None:
    parser = Parser(prog="p", description="says something")
    parser.add_argument("--a", help="no capital letter.")
    parser.add_argument("--b", help="No period")
    parser.add_argument("--c", help="Ends with a default (default: 3).", default=3)
    parser.add_argument("--d", help="None of these.", choices=("x", "y"), metavar="KIND")
    parser.add_argument("--e")
    found = list(faults(parser))
    assert [fault.split(":")[0] for fault in found] == [
        *("the help says None", "description", "examples", "--a", "--b", "--c", "--d", "--d", "--e"),
    ]
    assert "its text must begin with a capital letter and end with a period: 'No period'" in found[4]


def test_a_wrong_example_is_refused() -> None:
    with pytest.raises(InputError, match="unknown option --nonsense"):
        parse_arguments(words_of("python -m vlm2vec.train --nonsense 3", "vlm2vec.train"))
    with pytest.raises(AssertionError, match="does not start this program"):
        words_of("python -m vlm2vec.plan", "vlm2vec.train")


def test_long_commands_break_before_flags() -> None:
    command = "python -m program " + " ".join(f"--flag_{number} 'a value' {'x' * 20}" for number in range(6))
    lines = command_text(command).split("\n")
    assert len(lines) > 2
    assert all(len(line) <= HELP_WIDTH and (line.endswith(" \\") or line == lines[-1]) for line in lines)
    assert all(line.startswith("    --flag_") for line in lines[1:])
    assert shlex.split(command_text(command).replace("\\\n", "")) == shlex.split(command)


def test_a_field_says_what_stands_for_its_value() -> None:
    assert option(None, "A folder.", metavar="DIR").metadata["metavar"] == "DIR"
    assert "metavar" not in option(1, "A number.").metadata
