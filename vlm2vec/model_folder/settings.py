"""Settings of a saved model that none of its other files holds, in `vlm2vec_config.json`.

Every save writes the file and every loader reads it, so that a model gives the embeddings that it was trained for
without the flags of its training.
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
"""Default of an argument for which None has a meaning: use what the folder says."""

_Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class ChangedSettingWarning(UserWarning):
    """An argument gives a model a different setting than it was saved with."""


class ModelSettings(ImageLimits):
    """How an encoder is used. A field that the file lacks has its default, VLM2Vec's value.

    The image limits that it was trained with are fields too.

    Attributes:
        max_len: Texts without an image are truncated to this many tokens; None: not truncated. If no file gives it, the
            prompt format does (`Family.default_max_len`).
        pooling: "last" or "eos", two names of the same pooling: the last token's hidden state.
        normalize: Scale vectors to length 1.
        prompt_format: Format of its prompts; None: the file does not say.
        base_fingerprint: Fingerprint (`weights_fingerprint`) of the weights that training started from, which are those
            of an adapter's base; None: unknown.
    """

    model_config = ConfigDict(extra="forbid")

    max_len: _Count | None = DEFAULT_MAX_LEN
    pooling: Literal["last", "eos"] = "last"
    normalize: bool = True
    prompt_format: PromptFormat | None = None
    base_fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None

    @classmethod
    def read(cls, *folders: Path | None) -> ModelSettings:
        """Reads the settings of a model.

        Args:
            folders: The adapter's folder, if any, and the base model's; the first that holds the file decides.

        Returns:
            The defaults if no folder holds the file. `stored` tells what a file says.

        Raises:
            InputError: The file is damaged, or a setting is unknown, missing or impossible; the message names it.
        """
        for folder in folders:
            if folder is not None and (folder / SETTINGS_FILE).is_file():
                return checked(cls, read_json(folder / SETTINGS_FILE), folder / SETTINGS_FILE)
        return cls()

    @property
    def stored(self) -> dict[str, Any]:
        """The settings that the file gave, without defaults."""
        return self.model_dump(exclude_unset=True)

    @property
    def image_limits(self) -> dict[str, int]:
        """The image limits that have a value, by name."""
        return given_limits({name: getattr(self, name) for name in LIMITS})

    def with_limits(self, limits: Mapping[str, int]) -> ModelSettings:
        """A copy with different image limits."""
        return checked(ModelSettings, {**self.stored, **limits}, "limits")

    def write(self, folder: Path) -> None:
        """Writes the file: all fields except unknown limits and an unknown format."""
        unknown = {name for name in (*LIMITS, "prompt_format") if getattr(self, name) is None}
        write_json(folder / SETTINGS_FILE, self.model_dump(exclude=unknown))

    def with_arguments(self, **given: Any) -> tuple[ModelSettings, list[str]]:
        """A copy in which explicit arguments override settings.

        Args:
            given: Explicit settings by name.

        Returns:
            The settings to use, and a line for each argument that differs from what the file says.

        Raises:
            InputError: A value is impossible.
        """
        used = checked(ModelSettings, self.stored | given, "arguments")
        lines = []
        for name in self.stored:
            now, before = getattr(used, name), getattr(self, name)
            if not is_same(name, before, now):
                now, before = shown(now, before), shown(before, now)
                lines.append(
                    f"{name} is {now}, but the model was saved with {name} {before}; its embeddings will differ"
                )
        return used, lines


def is_same(name: str, stored: Any, used: Any) -> bool:
    """Whether two values of a setting give the same embeddings, as far as the file tells."""
    if name == "pooling":
        return True  # two names of the same pooling
    if isinstance(stored, PromptFormat) and isinstance(used, PromptFormat):
        return stored.is_same(used)
    return stored == used or (name in LIMITS and stored is None)


def shown(value: Any, other: Any) -> Any:
    """A setting's value for a message that compares it with `other`: of a format, its name or the differing field."""
    if not isinstance(value, PromptFormat):
        return value
    if not isinstance(other, PromptFormat) or value.name != other.name:
        return value.name
    field = next(name for name in PromptFormat.model_fields if getattr(value, name) != getattr(other, name))
    return f"{value.name} with {field} {shorten(getattr(value, field))}"
