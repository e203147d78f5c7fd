"""Checks Qwen-VL's config.json before anything is allocated from it: types, bounds, consistency.

Types and bounds are checked on the file's fields; consistency is checked on the configuration made from them, in which
absent fields have transformers' defaults.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from vlm2vec.backbones.checkpoint import CONFIG_FILE, Shape, TensorNames
from vlm2vec.backbones.config_fields import (
    Heads,
    Layers,
    Pixels,
    Positions,
    Positive,
    Precision,
    Share,
    TokenId,
    Width,
    check_depths,
    known_activation,
)
from vlm2vec.backbones.qwen_vl.configuration import Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig
from vlm2vec.backbones.qwen_vl.decoder import mrope_sections
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import StrictModel, checked, read_json, shorten

_Number = Annotated[int, Field(ge=0, le=1 << 31)]
_Rotation = Literal["mrope", "default"]


class _RopeFields(StrictModel):
    """`rope_scaling` or `rope_parameters`; "type" and "rope_type" are synonyms."""

    type: _Rotation | None = None
    rope_type: _Rotation | None = None
    mrope_section: Annotated[list[_Number], Field(min_length=3, max_length=3)] | None = None
    mrope_interleaved: bool | None = None
    rope_theta: Positive | None = None


class _TextFields(StrictModel):
    """Fields of the language model. A default of 1 or "" means that transformers' default applies."""

    vocab_size: Width = 1
    hidden_size: Width = 1
    intermediate_size: Width = 1
    num_hidden_layers: Layers = 1
    num_attention_heads: Heads = 1
    num_key_value_heads: Heads | None = None
    head_dim: Width | None = None
    max_position_embeddings: Positions = 2
    hidden_act: str = ""
    rms_norm_eps: Share = 1
    rope_theta: Positive | None = None
    rope_scaling: _RopeFields | None = None
    rope_parameters: _RopeFields | None = None
    use_sliding_window: Literal[False] | None = None
    sliding_window: Positions | None = None
    layer_types: list[Literal["full_attention"]] | None = None
    attention_bias: bool = False
    attention_dropout: Share = 0.0
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: TokenId | None = None
    dtype: Precision | None = None
    torch_dtype: Precision | None = None


class _VisionFields(StrictModel):
    """Fields that the towers share. A default of 1 or "" means that transformers' default applies."""

    depth: Layers = 1
    num_hidden_layers: Layers = 1  # transformers reads these two as synonyms of depth and num_heads
    num_attention_heads: Heads = 1
    hidden_size: Width = 1
    hidden_act: str = ""
    num_heads: Heads = 1
    in_channels: Literal[3] = 3
    in_chans: Literal[3] = 3
    patch_size: Pixels = 1
    spatial_merge_size: Literal[2] = 2
    temporal_patch_size: Literal[2] = 2


class _Qwen2VLVisionFields(_VisionFields):
    embed_dim: Width = 1
    mlp_ratio: Annotated[int, Field(ge=1, le=1024)] = 1


class _Qwen2_5_VLVisionFields(_VisionFields):  # noqa: N801
    intermediate_size: Width = 1
    out_hidden_size: Width = 1
    window_size: Pixels = 1
    fullatt_block_indexes: list[_Number] = Field(default_factory=list)


class _Qwen3VLVisionFields(_VisionFields):
    intermediate_size: Width = 1
    out_hidden_size: Width = 1
    num_position_embeddings: Width = 1
    deepstack_visual_indexes: list[_Number] = Field(default_factory=list)


class _ModelFields(StrictModel):
    """Top-level fields of every layout; other fields are kept and do not affect embeddings."""

    image_token_id: _Number = 0
    video_token_id: _Number = 0
    vision_start_token_id: _Number = 0
    vision_end_token_id: _Number = 0
    tie_word_embeddings: bool = False
    dtype: Precision | None = None
    torch_dtype: Precision | None = None
    quantization_config: None = None


class _NestedText(StrictModel):
    text_config: _TextFields


class _Qwen2VLVision(StrictModel):
    vision_config: _Qwen2VLVisionFields


class _Qwen2_5_VLVision(StrictModel):  # noqa: N801
    vision_config: _Qwen2_5_VLVisionFields


class _Qwen3VLVision(StrictModel):
    vision_config: _Qwen3VLVisionFields


# Fields that the tower of one family always has, and no other tower.
_TOWER_FIELDS: Mapping[str, tuple[str, ...]] = {
    Qwen2VLConfig.model_type: ("embed_dim",),
    Qwen2_5_VLConfig.model_type: ("window_size", "fullatt_block_indexes"),
    Qwen3VLConfig.model_type: ("num_position_embeddings", "deepstack_visual_indexes"),
}
_VISION: Mapping[str, type[StrictModel]] = {
    Qwen2VLConfig.model_type: _Qwen2VLVision,
    Qwen2_5_VLConfig.model_type: _Qwen2_5_VLVision,
    Qwen3VLConfig.model_type: _Qwen3VLVision,
}


def read_config(
    kind: type[Any], folder: Path, found: Mapping[str, Shape], names: TensorNames, layers: tuple[str, str]
) -> Any:
    """Reads a folder's config.json; checks it for consistency and against the weights' width and depths.

    Args:
        kind: Configuration class of the family.
        folder: The checkpoint.
        found: Its tensors; if there are none, they are not compared.
        names: Tensor names of the family.
        layers: Prefixes of the tensor names of decoder and tower layers.

    Raises:
        InputError: The file is missing, damaged or of a different model, or a value is impossible or does not match the
            weights; the message names file and field.
    """
    file = folder / CONFIG_FILE
    content = read_json(file)
    if content.get("model_type") != kind.model_type:
        raise InputError(f"{file}: model_type is {shorten(content.get('model_type'))}, not {kind.model_type!r}")
    _check_kind(file, kind.model_type, content.get("vision_config"))
    # transformers requires text_config in Qwen3-VL, and accepts both layouts in the others.
    nested = kind is Qwen3VLConfig or content.get("text_config") is not None
    checked(_ModelFields, content, file)
    checked(_NestedText if nested else _TextFields, content, file)
    checked(_VISION[kind.model_type], content, file)
    text = content["text_config"] if nested else content
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if kind is Qwen3VLConfig and text.get("rope_theta") is None and rope.get("rope_theta") is None:
        raise InputError(f"{file}: text_config.rope_theta is missing")
    for part in (content, text, content["vision_config"]):
        if "torch_dtype" in part:  # transformers reads the older name with a warning
            part["dtype"] = part.pop("torch_dtype")
    try:
        config = kind.from_dict(content)
    except Exception as error:  # transformers' validation raises several types
        raise InputError(f"{file}: not a usable configuration ({' '.join(str(error).split())})") from error
    prefix = "text_config." if nested else ""
    width, embeddings = config.text_config.hidden_size, found.get(names.embeddings)
    if embeddings is not None and embeddings[-1] != width:
        raise InputError(f"{file}: {prefix}hidden_size is {width}, but the weights are {embeddings[-1]} wide")
    try:
        _check_decoder(config.text_config, prefix, interleaved=kind is Qwen3VLConfig)
        _check_tower(config)
        for field in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            if getattr(config, field) >= config.text_config.vocab_size:
                raise ValueError(f"{field} {getattr(config, field)} is not below {prefix}vocab_size")
    except ValueError as error:
        raise InputError(f"{file}: {error}{_defaults_in(str(error), content)}") from error
    depths = {
        f"{prefix}num_hidden_layers": (config.text_config.num_hidden_layers, layers[0]),
        "vision_config.depth": (config.vision_config.depth, layers[1]),
    }
    check_depths(file, depths, found)
    return config


def _check_kind(file: Path, model_type: str, vision: Any) -> None:
    """Refuses a file with a different family's tower: all missing fields would silently have defaults.

    Raises:
        InputError: The tower is of a different family.
    """
    if not isinstance(vision, dict) or any(name in vision for name in _TOWER_FIELDS[model_type]):
        return
    for other, names in _TOWER_FIELDS.items():
        if all(name in vision for name in names):
            raise InputError(
                f"{file}: model_type is {model_type!r}, but vision_config is a {other}'s (it has {', '.join(names)}, "
                f"and not {', '.join(_TOWER_FIELDS[model_type])}); correct model_type, or use the model's original file"
            )


def _defaults_in(message: str, content: Mapping[str, Any]) -> str:
    """Addition to a message that names fields which the file does not have."""
    named = re.findall(r"\b(text_config|vision_config)\.(\w+)", message)
    absent = [f"{part}.{name}" for part, name in named if name not in (content.get(part) or {})]
    return f" (the file has no {absent[0]}: the value is transformers' default)" if absent else ""


def _check_decoder(text: Any, prefix: str, interleaved: bool) -> None:
    known_activation(f"{prefix}hidden_act", text.hidden_act)
    heads, groups, head_dim = text.num_attention_heads, text.num_key_value_heads, getattr(text, "head_dim", None)
    if head_dim is None and text.hidden_size % (2 * heads):
        raise ValueError(
            f"{prefix}hidden_size {text.hidden_size} is not an even multiple of num_attention_heads {heads}"
        )
    if heads % groups:
        raise ValueError(f"{prefix}num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}")
    half = (head_dim or text.hidden_size // heads) // 2  # transformers refuses odd ones
    sections = mrope_sections(text, interleaved)
    if sum(sections) != half or (interleaved and 3 * max(sections[1:]) > half):
        raise ValueError(
            f"{prefix}rope_scaling.mrope_section is {sections}; it must cut {half} frequencies, half the width of a "
            "head, into three parts"
        )
    if text.rope_parameters.get("mrope_interleaved") not in (None, interleaved):
        raise ValueError(f"{prefix}rope_scaling.mrope_interleaved must be {str(interleaved).lower()}")
    kinds = getattr(text, "layer_types", None)
    if kinds is not None and len(kinds) != text.num_hidden_layers:
        raise ValueError(f"{prefix}layer_types has {len(kinds)} entries, num_hidden_layers is {text.num_hidden_layers}")


def _check_tower(config: Any) -> None:
    vision, hidden_size = config.vision_config, config.text_config.hidden_size
    known_activation("vision_config.hidden_act", vision.hidden_act)
    if isinstance(config, Qwen2VLConfig):
        field, width, output = "embed_dim", vision.embed_dim, ("hidden_size", vision.hidden_size)
    else:
        field, width, output = "hidden_size", vision.hidden_size, ("out_hidden_size", vision.out_hidden_size)
    if width % (4 * vision.num_heads):
        raise ValueError(f"vision_config.{field} {width} is not a multiple of 4 num_heads, {4 * vision.num_heads}")
    if output[1] != hidden_size:
        raise ValueError(f"vision_config.{output[0]} is {output[1]}, the language model's hidden_size {hidden_size}")
    if isinstance(config, Qwen2_5_VLConfig):
        if vision.window_size % (2 * vision.patch_size):
            raise ValueError(
                f"vision_config.window_size {vision.window_size} is not an even multiple of patch_size "
                f"{vision.patch_size}"
            )
        _check_layers("fullatt_block_indexes", vision.fullatt_block_indexes, vision.depth)
    if isinstance(config, Qwen3VLConfig):
        if math.isqrt(vision.num_position_embeddings) ** 2 != vision.num_position_embeddings:
            raise ValueError(f"vision_config.num_position_embeddings {vision.num_position_embeddings} is no square")
        indexes = vision.deepstack_visual_indexes
        _check_layers("deepstack_visual_indexes", indexes, vision.depth)
        if len(indexes) > config.text_config.num_hidden_layers:
            raise ValueError(
                f"vision_config.deepstack_visual_indexes {shorten(indexes)} are more than text_config.num_hidden_layers"
            )


def _check_layers(field: str, indexes: Any, depth: int) -> None:
    if list(indexes) != sorted({index for index in indexes if index < depth}):
        raise ValueError(f"vision_config.{field} {shorten(indexes)} are not ascending numbers of layers below {depth}")
