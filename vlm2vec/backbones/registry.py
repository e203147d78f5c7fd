"""Registry of model families by the `model_type` in config.json."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from vlm2vec.backbones.checkpoint import CONFIG_FILE
from vlm2vec.backbones.interface import Family
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import read_json, shorten

# The model that the shipped recipes train.
DEFAULT_MODEL = "microsoft/Phi-3.5-vision-instruct"
_HOW_TO_ADD = "docs/adding_a_backbone.md"
# Group of entry points by which installed packages register families: the family's name, and its `Family` object.
ENTRY_POINTS = "vlm2vec.families"


def _phi3_v() -> Family:
    from vlm2vec.backbones.phi3_v.family import PHI3_V

    return PHI3_V


def _qwen2_vl() -> Family:
    from vlm2vec.backbones.qwen_vl.family import QWEN2_VL

    return QWEN2_VL


def _qwen2_5_vl() -> Family:
    from vlm2vec.backbones.qwen_vl.family import QWEN2_5_VL

    return QWEN2_5_VL


def _qwen3_vl() -> Family:
    from vlm2vec.backbones.qwen_vl.family import QWEN3_VL

    return QWEN3_VL


# Imported when needed, because importing a family's layers takes seconds.
_FAMILIES: dict[str, Callable[[], Family]] = {
    "phi3_v": _phi3_v,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}


def register(model_type: str, load: Callable[[], Family]) -> None:
    """Registers a family from outside this package, in this process.

    Families of installed packages need no call; they are found by their entry points (`ENTRY_POINTS`).

    Args:
        model_type: The `model_type` in the config.json of its models.
        load: Returns the family.

    Raises:
        ValueError: There is already a family of that name.
    """
    if model_type in _FAMILIES:
        raise ValueError(f"there is a family {model_type!r} already")
    _FAMILIES[model_type] = load


def model_types() -> tuple[str, ...]:
    """Names of all families, sorted."""
    return tuple(sorted({*_FAMILIES, *entry_points(group=ENTRY_POINTS).names}))


def family_named(model_type: Any, source: str | Path) -> Family:
    """The family of a model type.

    Args:
        model_type: Value in config.json.
        source: The file that contains it, for messages.

    Raises:
        InputError: No family has this name, or an installed package's cannot be loaded.
    """
    if isinstance(model_type, str):
        if model_type in _FAMILIES:
            return _FAMILIES[model_type]()
        for entry in entry_points(group=ENTRY_POINTS, name=model_type):
            return _installed_family(entry, source)
    raise InputError(
        f"{source}: model_type is {shorten(model_type)}; supported are {', '.join(model_types())} ({_HOW_TO_ADD} says "
        "how to add one)"
    )


def _installed_family(entry: EntryPoint, source: str | Path) -> Family:
    """Loads the family that an entry point names.

    Raises:
        InputError: It cannot be imported, or is no family.
    """
    try:
        family = entry.load()
    except Exception as error:  # the import of a package can raise any type
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{source}: family {entry.name!r} cannot be loaded from {entry.value} ({reason})") from error
    if not isinstance(family, Family):
        raise InputError(f"{source}: family {entry.name!r}: {entry.value} is a {type(family).__name__}, not a Family")
    return family


def published_config(name: str) -> Path:
    """Folder with the configuration of a published model, without weights, which its family ships.

    Args:
        name: Name of the model on the Hugging Face hub.

    Raises:
        InputError: No family ships it.
    """
    known: list[str] = []
    # This package's families first, and only as needed: importing a family takes seconds.
    for model_type in dict.fromkeys((*_FAMILIES, *model_types())):
        shipped = family_named(model_type, name).published_configs
        if name in shipped:
            return shipped[name]
        known += shipped
    raise InputError(
        f"{name}: neither a folder with {CONFIG_FILE} nor a model whose configuration is shipped ({', '.join(known)}); "
        f"download its {CONFIG_FILE} and give the folder"
    )


def family_of_folder(folder: Path) -> Family:
    """The family of a model's folder.

    Raises:
        InputError: config.json is missing or damaged, or no family has its model_type.
    """
    return family_named(read_json(folder / CONFIG_FILE).get("model_type"), folder / CONFIG_FILE)


def family_of_config(config: Any) -> Family:
    """The family of a configuration object.

    Raises:
        InputError: It belongs to no known family.
    """
    return family_named(config.model_type, type(config).__name__)
