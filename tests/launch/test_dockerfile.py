"""The image: versions as in setup.py and constraints.txt, not run by root, and no file missing from the build."""

from __future__ import annotations

import fnmatch
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from trials.rig.launcher import REPOSITORY

# torch of PyPI and the CUDA that it is built for: `pip download torch` names it as cuda-toolkit.
TORCH, CUDA = "2.13.0", "13.0.3"


def instructions() -> list[tuple[str, str]]:
    """Every instruction of the Dockerfile with its words, continued lines joined."""
    text = (REPOSITORY / "launch/Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    found = re.findall(r"(?m)^([A-Z]+) ((?:.*\\\n)*.*)$", lines)
    return [(name, re.sub(r"\s*\\\n\s*", " ", words)) for name, words in found]


def words_of(name: str) -> list[str]:
    return [words for each, words in instructions() if each == name]


def commands() -> list[list[str]]:
    """The commands of all RUN instructions."""
    return [shlex.split(command) for words in words_of("RUN") for command in words.split(" && ")]


def pip_installs() -> list[list[str]]:
    return [command for command in commands() if command[1:4] == ["-m", "pip", "install"]]


def is_ignored(path: str) -> bool:
    """What .dockerignore says of a path: the last line that fits it or a folder above it counts."""
    ignored = False
    folders = [path, *(str(parent) for parent in Path(path).parents)]
    for line in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        names = [Path(each).name for each in folders] if "**/" in line else folders
        if line and not line.startswith("#") and any(fnmatch.fnmatchcase(each, pattern) for each in names):
            ignored = not line.startswith("!")
    return ignored


def test_the_base_image_has_the_cuda_of_torch() -> None:
    constraints = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"torch=={TORCH}" in constraints, "look up the CUDA of the new torch, for launch/Dockerfile and this test"
    assert words_of("FROM") == [f"nvidia/cuda:{CUDA}-${{CUDA_FLAVOR}}-ubuntu24.04"]
    assert words_of("ARG") == ["CUDA_FLAVOR=runtime"]
    if torch.__version__ == TORCH and torch.version.cuda is not None:
        assert torch.version.cuda == CUDA.rpartition(".")[0]


def test_python_is_one_that_the_package_takes() -> None:
    setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    least, below = map(int, re.findall(r'python_requires=">=3\.(\d+),<3\.(\d+)"', setup)[0])
    used = {int(minor) for minor in re.findall(r"python3\.(\d+)", " ".join(words_of("RUN")))}
    assert len(used) == 1
    assert least <= used.pop() < below


def test_packages_are_those_of_the_constraints_and_no_cache_is_left() -> None:
    installs = pip_installs()
    assert len(installs) == 2
    for command in installs:
        assert "--no-cache-dir" in command
        assert command[command.index("--constraint") + 1] == "constraints.txt"
    assert installs[0][-1] == "torch"
    (extras,) = re.findall(r"^\.\[(.+)\]$", installs[1][-1])
    setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    assert all(f'"{extra}": [' in setup for extra in extras.split(","))
    updates = [words for words in words_of("RUN") if "apt-get update" in words]
    assert len(updates) == 1
    assert updates[0].endswith("rm -rf /var/lib/apt/lists/*")
    assert "--no-install-recommends" in updates[0]


def test_the_image_runs_as_a_user() -> None:
    made = next(command for command in commands() if command[0] == "useradd")
    user = made[made.index("--uid") + 1]
    assert words_of("USER") == [user]  # a number, for clusters that refuse root
    assert user not in ("0", "1000")  # root, and a user that the base image has
    names = [name for name, _ in instructions()]
    assert "RUN" not in names[names.index("USER") :]
    job = list(yaml.safe_load_all((REPOSITORY / "launch/kubernetes.yaml").read_text()))[2]["spec"]["template"]["spec"]
    assert job["securityContext"]["fsGroup"] == int(user)


@pytest.mark.parametrize("name", ["vlm2vec", "data_prep", "eval", "ds_configs", "launch", "examples"])
def test_the_build_gets_every_file_of_a_folder(name: str) -> None:
    files = [path.relative_to(REPOSITORY) for path in (REPOSITORY / name).rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert is_ignored(str(path)) == ("__pycache__" in path.parts), path


def test_the_build_gets_what_setup_reads_and_no_data() -> None:
    for name in ("setup.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "MANIFEST.in"):
        assert (REPOSITORY / name).is_file()
        assert not is_ignored(name)
    for name in ("demo/shards/a.tar", "runs/x/log.jsonl", ".venv/bin/python", ".git/config", "MMEB-train/x"):
        assert is_ignored(name)
