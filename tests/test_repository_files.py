"""Files for those who work on the project: CI and hooks run what `make check` runs, on the versions of setup.py."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm2vec.installed.commands import COMMANDS

REPOSITORY = Path(__file__).parents[1]
GITHUB = REPOSITORY / ".github"
YAML_FILES = [*sorted(GITHUB.rglob("*.yml")), REPOSITORY / ".pre-commit-config.yaml"]


def read(path: Path) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yaml_is_read(path: Path) -> None:
    assert read(path)


def test_ci_runs_the_script_on_every_python_of_setup() -> None:
    workflow = read(GITHUB / "workflows/ci.yml")
    assert workflow[True].keys() == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    least, below = map(int, re.findall(r'python_requires=">=3\.(\d+),<3\.(\d+)"', setup)[0])
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(least, below)]
    assert job["env"]["PYTHON"] == "python${{ matrix.python }}"
    assert job["timeout-minutes"] <= 120
    *actions, script = job["steps"]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in actions)
    assert script == {"run": ".ci/run"}
    assert os.access(REPOSITORY / ".ci/run", os.X_OK)


def test_hooks_run_the_programs_of_make_check() -> None:
    """None comes from elsewhere, so that versions are those of constraints.txt."""
    (repository,) = read(REPOSITORY / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    checked = set(re.findall(r"\$\(BIN\)/(\S+)", recipe))
    hooked = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in repository["hooks"]}
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    assert hooked <= checked


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_lead_to_files(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [target for target in targets if not (REPOSITORY / target).exists()] == []


def test_the_page_names_every_console_script_and_every_extra() -> None:
    page = (REPOSITORY / "docs/install.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"\| `(vlm2vec-\w+)` \| `([\w.]+)` ", page)) == COMMANDS
    _, setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8").split("extras_require={")
    extras = set(re.findall(r'^        "([\w-]+)": \[', setup, re.MULTILINE))
    rows = re.findall(r"^\| (`.+?`) \| ", page[page.index("| extra |") :], re.MULTILINE)
    assert extras <= {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}


def test_commands_for_contributors_are_targets_of_make() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"(?m)(?:^|`)make ([\w-]+)", (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert named - targets == set()
