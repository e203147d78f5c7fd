"""The recipes and engine files of this project by name: `--config lora_1024 --deepspeed zero2`.

In the repository they lie in launch/recipes/ and ds_configs/. A wheel has copies beside this module (see setup.py).
"""

from __future__ import annotations

from pathlib import Path

from vlm2vec.errors import InputError

_INSTALLED, _REPOSITORY = Path(__file__).parent, Path(__file__).parents[2]


def recipe_file(path: Path) -> Path:
    """The YAML file that `--config` means: a path as it is, and a recipe of this project for a bare name.

    Raises:
        InputError: A bare name that is neither a file nor a recipe; the message lists the recipes.
    """
    return _find(path, "--config", "recipe", (_INSTALLED / "recipes", _REPOSITORY / "launch" / "recipes"), ".yaml")


def engine_file(path: Path) -> Path:
    """The JSON file that `--deepspeed` means: a path as it is, and a file of ds_configs/ for a bare name.

    Raises:
        InputError: A bare name that is neither a file nor one of ds_configs/; the message lists them.
    """
    return _find(path, "--deepspeed", "engine file", (_INSTALLED / "ds_configs", _REPOSITORY / "ds_configs"), ".json")


def _find(path: Path, flag: str, what: str, folders: tuple[Path, ...], suffix: str) -> Path:
    """The file of that name in the first of the folders that exists.

    Args:
        path: What was given; a name without folder and suffix is looked up, unless a file has it.
        flag: Names the value in the message.
        what: Such files, in the message.
        folders: The wheel's and the repository's.
        suffix: Of such files.
    """
    if path.name != str(path) or path.suffix or path.exists():
        return path
    known = {file.stem: file for folder in folders for file in sorted(folder.glob(f"*{suffix}"))}
    if path.name not in known:
        raise InputError(f"{flag} {path}: no such file, and no {what} of that name; there are: {', '.join(known)}")
    return known[path.name]
