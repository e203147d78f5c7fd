"""The settings that belong to a saved model and that no other of its files holds: `vlm2vec_config.json`.

Every save writes the file and every loader reads it, so that a model gives the vectors that it was trained for without
anybody repeating the flags of its training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from vlm2vec.backbones.image_limits import LIMITS, ImageLimits, given_limits
from vlm2vec.backbones.prompts import DEFAULT_MAX_LEN, PromptFormat
from vlm2vec.formats.json_files import checked, read_json, shorten, write_json

SETTINGS_FILE = "vlm2vec_config.json"

STORED: Literal["stored"] = "stored"
"""For an argument whose None means something: what the folder says."""

_Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class ChangedSettingWarning(UserWarning):
    """A model is used with another setting than it was saved with, as an argument asks for."""


class ModelSettings(ImageLimits):
    """How an encoder is used. A field that the file does not have gets its default, the original's value.

    The limits of its images are fields too, those that it was trained with.

    Attributes:
        max_len: Texts without an image are truncated to this many tokens; None: not at all. Where no file says it, the
            prompt format does (`Family.default_max_len`).
        pooling: "last" or "eos", two names for one thing: the last token's hidden state.
        normalize: Scale vectors to length 1.
        prompt_format: How its prompts were made; None: the file does not say.
        base_fingerprint: Of the weights that training started from, an adapter's base (`weights_fingerprint`);
            None: not known.
    """

    model_config = ConfigDict(extra="forbid")

    max_len: _Count | None = DEFAULT_MAX_LEN
    pooling: Literal["last", "eos"] = "last"
    normalize: bool = True
    prompt_format: PromptFormat | None = None
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

    @property
    def image_limits(self) -> dict[str, int]:
        """The limits that are known."""
        return given_limits({name: getattr(self, name) for name in LIMITS})

    def with_limits(self, limits: Mapping[str, int]) -> ModelSettings:
        """These settings with other limits."""
        return checked(ModelSettings, {**self.stored, **limits}, "limits")

    def write(self, folder: Path) -> None:
        """Writes the file: every field but what is not known of limits and format."""
        unknown = {name for name in (*LIMITS, "prompt_format") if getattr(self, name) is None}
        write_json(folder / SETTINGS_FILE, self.model_dump(exclude=unknown))

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
        lines = []
        for name in self.stored:
            now, before = getattr(used, name), getattr(self, name)
            if not is_same(name, before, now):
                now, before = shown(now, before), shown(before, now)
                lines.append(f"{name} is {now}, but the model was saved with {name} {before}; its vectors will differ")
        return used, lines


def is_same(name: str, stored: Any, used: Any) -> bool:
    """Whether two values of a setting give the same vectors, as far as the file tells."""
    if name == "pooling":
        return True  # there is one pooling, by two names
    if isinstance(stored, PromptFormat) and isinstance(used, PromptFormat):
        return stored.is_same(used)
    return stored == used or (name in LIMITS and stored is None)


def shown(value: Any, other: Any) -> Any:
    """A setting's value for a message that names a different one too; a format by its name, which may be the same."""
    if not isinstance(value, PromptFormat):
        return value
    if not isinstance(other, PromptFormat) or value.name != other.name:
        return value.name
    field = next(name for name in PromptFormat.model_fields if getattr(value, name) != getattr(other, name))
    return f"{value.name} with {field} {shorten(getattr(value, field))}"
