"""Finds recipes and engine files of this project by name: `--config lora_1024 --deepspeed zero2`.

In the repository they are in launch/recipes/ and ds_configs/. A wheel has copies next to this module (see setup.py).
"""

from __future__ import annotations

from pathlib import Path

from vlm2vec.errors import InputError

_INSTALLED, _REPOSITORY = Path(__file__).parent, Path(__file__).parents[2]


def recipe_file(path: Path) -> Path:
    """Resolves `--config` to a YAML file: a path is kept, and a bare name is looked up among this project's recipes.

    Raises:
        InputError: A bare name that is neither a file nor a recipe; the message lists the recipes.
    """
    return _find(path, "--config", "recipe", (_INSTALLED / "recipes", _REPOSITORY / "launch" / "recipes"), ".yaml")


def engine_file(path: Path) -> Path:
    """Resolves `--deepspeed` to a JSON file: a path is kept, and a bare name is looked up in ds_configs/.

    Raises:
        InputError: A bare name that is neither a file nor one of ds_configs/; the message lists them.
    """
    return _find(path, "--deepspeed", "engine file", (_INSTALLED / "ds_configs", _REPOSITORY / "ds_configs"), ".json")


def _find(path: Path, flag: str, what: str, folders: tuple[Path, ...], suffix: str) -> Path:
    """Looks up a bare name in folders; anything else is returned unchanged.

    Args:
        path: Value of the flag; a name without folder and suffix is looked up, unless a file has that name.
        flag: The flag, for the message.
        what: Kind of file, for the message.
        folders: Folders of the wheel and of the repository.
        suffix: Suffix of the files.
    """
    if path.name != str(path) or path.suffix or path.exists():
        return path
    known = {file.stem: file for folder in folders for file in sorted(folder.glob(f"*{suffix}"))}
    if path.name not in known:
        raise InputError(f"{flag} {path}: no such file, and no {what} of that name; there are: {', '.join(known)}")
    return known[path.name]
