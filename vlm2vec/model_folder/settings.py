"""The settings that belong to a saved model and that no other of its files holds: `vlm2vec_config.json`.

Every save writes the file and every loader reads it, so that a model gives the vectors that it was trained for without
anybody repeating the flags of its training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from vlm2vec.formats.json_files import StrictModel, checked, read_json, write_json

SETTINGS_FILE = "vlm2vec_config.json"
DEFAULT_MAX_LEN = 256

STORED: Literal["stored"] = "stored"
"""For an argument whose None means something: what the folder says."""

_Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class ChangedSettingWarning(UserWarning):
    """A model is used with another setting than it was saved with, as an argument asks for."""


class ModelSettings(StrictModel):
    """How an encoder is used. A field that the file does not have gets its default, the original's value.

    Attributes:
        max_len: Texts without an image are truncated to this many tokens; None: not at all.
        pooling: "last" or "eos", two names for one thing: the last token's hidden state.
        normalize: Scale vectors to length 1.
        num_crops: Local crops per image that the model was trained with; None: not known.
        base_fingerprint: Of the weights that training started from, an adapter's base (`weights_fingerprint`);
            None: not known.
    """

    model_config = ConfigDict(extra="forbid")

    max_len: _Count | None = DEFAULT_MAX_LEN
    pooling: Literal["last", "eos"] = "last"
    normalize: bool = True
    num_crops: Annotated[int, Field(ge=1, le=1024)] | None = None
    base_fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None

    @classmethod
    def read(cls, *folders: Path | None) -> ModelSettings:
        """The settings of a model.

        Args:
            folders: The adapter's folder, if any, and the base model's; the first that holds the file decides.

        Returns:
            The defaults if no folder holds the file. `stored` tells what a file says.

        Raises:
            InputError: A damaged file, or an unknown, missing or impossible setting; the message names it.
        """
        for folder in folders:
            if folder is not None and (folder / SETTINGS_FILE).is_file():
                return checked(cls, read_json(folder / SETTINGS_FILE), folder / SETTINGS_FILE)
        return cls()

    @property
    def stored(self) -> dict[str, Any]:
        """What a file said, without defaults."""
        return self.model_dump(exclude_unset=True)

    def write(self, folder: Path) -> None:
        """Writes the file, every field of it."""
        write_json(folder / SETTINGS_FILE, self.model_dump())

    def with_arguments(self, **given: Any) -> tuple[ModelSettings, list[str]]:
        """These settings with explicit arguments in their place.

        Args:
            given: Settings by name.

        Returns:
            The settings to use, and a line for every argument that differs from what the file says.

        Raises:
            InputError: An impossible value.
        """
        used = checked(ModelSettings, self.stored | given, "arguments")
        lines = [
            f"{name} is {getattr(used, name)}, but the model was saved with {name} {value}; its vectors will differ"
            for name, value in self.stored.items()
            if not _is_same(name, value, getattr(used, name))
        ]
        return used, lines


def _is_same(name: str, stored: Any, used: Any) -> bool:
    """Whether two values of a setting give the same vectors, as far as the file tells."""
    if name == "pooling":
        return True  # there is one pooling, by two names
    return stored == used or (name == "num_crops" and stored is None)
