"""Configurations of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: transformers' classes, which write the published layout.

transformers 5 writes a different layout (`text_config`, `rope_parameters`), which older loaders do not read. All
loaders, transformers 5 too, read the published layout.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen2_5_VLConfig as PlainQwen2_5_VLConfig
from transformers import Qwen2VLConfig as PlainQwen2VLConfig
from transformers import Qwen3VLConfig as PlainQwen3VLConfig

# Fields that transformers adds and no published file has; all of them follow from others.
_ADDED_TO_TEXT = ("layer_types", "rope_parameters", "model_type", "transformers_version", "_name_or_path")
_PLAIN_VISION_ROPE = {"rope_theta": 10000.0, "rope_type": "axial"}


class _PublishedConfig:
    """Base of the three configurations."""

    def __post_init__(self, **kwargs: Any) -> None:
        # Programs that load the model choose these; a file may contain the choice of a different program.
        for key in ("_attn_implementation", "attn_implementation", "auto_map"):
            kwargs.pop(key, None)
        super().__post_init__(**kwargs)  # type: ignore[misc]


class _FlatConfig(_PublishedConfig):
    """Layout of Qwen2-VL and Qwen2.5-VL, with the fields of the language model at the top level."""

    text_config: Any

    def __post_init__(self, **kwargs: Any) -> None:
        nested = self.text_config
        written = (kwargs if nested is None else nested if isinstance(nested, dict) else {}).get("sliding_window")
        super().__post_init__(**kwargs)
        if written is not None:  # no layer has a sliding window, but published files name its width
            self.text_config.sliding_window = written

    def to_dict(self) -> dict[str, Any]:
        """The configuration in the published layout."""
        output: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        text, vision = output.pop("text_config"), output["vision_config"]
        rope = text["rope_parameters"]
        flat = {
            name: value
            for name, value in text.items()
            if name not in _ADDED_TO_TEXT and name not in output and (name, value) != ("pad_token_id", None)
        }
        output |= flat | _published_rope(rope, "type", "mrope")
        if "in_chans" in vision:
            vision.pop("in_channels")
        output["vision_config"] = _published_vision(vision)
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        """Content of the file: the published layout without what transformers adds to every model's."""
        output: dict[str, Any] = super().to_diff_dict()  # type: ignore[misc]
        if "dtype" in output:
            output["torch_dtype"] = output.pop("dtype")
        return output


class Qwen2VLConfig(_FlatConfig, PlainQwen2VLConfig):
    """Configuration of Qwen2-VL."""


class Qwen2_5_VLConfig(_FlatConfig, PlainQwen2_5_VLConfig):  # noqa: N801  (the model's name)
    """Configuration of Qwen2.5-VL."""


class Qwen3VLConfig(_PublishedConfig, PlainQwen3VLConfig):
    """Configuration of Qwen3-VL. Its published layout is nested, but has `rope_scaling` and `rope_theta`."""

    def to_dict(self) -> dict[str, Any]:
        """The published layout."""
        output: dict[str, Any] = super().to_dict()
        text, vision = output["text_config"], output["vision_config"]
        rope = _published_rope(text["rope_parameters"], "rope_type", "default")
        text = {name: value for name, value in text.items() if (name, value) != ("pad_token_id", None)}
        output["text_config"] = _without(text, ("rope_parameters", "_name_or_path")) | rope
        if output.get("dtype") is not None:
            output["text_config"]["dtype"] = output["dtype"]
        output["vision_config"] = _published_vision(vision) | {"model_type": self.model_type}
        return output


def _published_rope(rope: dict[str, Any], key: str, kind: str) -> dict[str, Any]:
    """Converts transformers' `rope_parameters` to `rope_theta` and `rope_scaling`."""
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "type", "rope_type")}
    return {"rope_theta": rope["rope_theta"], "rope_scaling": {key: kind, **scaling}}


def _published_vision(vision: dict[str, Any]) -> dict[str, Any]:
    plain = vision["rope_parameters"] == _PLAIN_VISION_ROPE
    return _without(vision, ("_name_or_path", "model_type", "dtype", *(("rope_parameters",) if plain else ())))


def _without(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
