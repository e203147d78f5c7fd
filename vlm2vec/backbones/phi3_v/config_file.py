"""Checks Phi-3-V's config.json before anything is allocated from it: types, bounds, consistency."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vlm2vec.backbones.checkpoint import CONFIG_FILE
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
from vlm2vec.backbones.phi3_v.configuration import CLIP_VIT_LARGE_PATCH14_336, Phi3VConfig, view_grid
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import StrictModel, checked, read_json, shorten

_VISION_LAYERS = "model.vision_embed_tokens.img_processor.vision_model.encoder.layers."


class _VisionFields(StrictModel):
    """`vision_config`, which no published file has; defaults are those of ViT-L/14-336."""

    hidden_size: Width = CLIP_VIT_LARGE_PATCH14_336["hidden_size"]
    intermediate_size: Width = CLIP_VIT_LARGE_PATCH14_336["intermediate_size"]
    projection_dim: Width = CLIP_VIT_LARGE_PATCH14_336["projection_dim"]
    num_hidden_layers: Layers = CLIP_VIT_LARGE_PATCH14_336["num_hidden_layers"]
    num_attention_heads: Heads = CLIP_VIT_LARGE_PATCH14_336["num_attention_heads"]
    num_channels: Literal[3] = 3
    image_size: Pixels = CLIP_VIT_LARGE_PATCH14_336["image_size"]
    patch_size: Pixels = CLIP_VIT_LARGE_PATCH14_336["patch_size"]
    hidden_act: str = CLIP_VIT_LARGE_PATCH14_336["hidden_act"]
    layer_norm_eps: Share = CLIP_VIT_LARGE_PATCH14_336["layer_norm_eps"]
    attention_dropout: Share = 0.0
    initializer_factor: float = 1.0
    initializer_range: float = 0.02

    @model_validator(mode="after")
    def _fits(self) -> _VisionFields:
        known_activation("vision_config.hidden_act", self.hidden_act)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"vision_config.hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        view_grid(self.image_size, self.patch_size)
        return self


class _VisionOfConfig(StrictModel):
    """The part of config.json that a processor needs."""

    vision_config: _VisionFields | None = None


class _RopeFields(StrictModel):
    """`rope_scaling`; "type" and "rope_type" are synonyms."""

    type: Literal["su", "longrope", "default"] | None = None
    rope_type: Literal["su", "longrope", "default"] | None = None
    short_factor: list[Positive] | None = None
    long_factor: list[Positive] | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: Annotated[float, Field(ge=1, le=1)] = 1.0


class _ConfigFields(StrictModel):
    """Checked fields of config.json; other fields are kept and do not affect embeddings."""

    model_type: Literal["phi3_v"]
    vocab_size: Width = 32064
    hidden_size: Width = 3072
    intermediate_size: Width = 8192
    num_hidden_layers: Layers = 32
    num_attention_heads: Heads = 32
    num_key_value_heads: Heads | None = None
    max_position_embeddings: Positions = 131072
    original_max_position_embeddings: Positions = 4096
    hidden_act: str = "silu"
    rms_norm_eps: Share = 1e-5
    rope_theta: Positive | None = None
    rope_scaling: _RopeFields | None = None
    rope_parameters: _RopeFields | None = None
    sliding_window: Positions | None = None
    attention_dropout: Share = 0.0
    resid_pdrop: Share = 0.0
    embd_pdrop: Share = 0.0
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: TokenId | None = None
    dtype: Precision | None = None
    torch_dtype: Precision | None = None
    quantization_config: None = None
    vision_config: _VisionFields | None = None

    @model_validator(mode="after")
    def _fits(self) -> _ConfigFields:
        known_activation("hidden_act", self.hidden_act)
        heads, groups = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        if self.hidden_size % (2 * heads):
            raise ValueError(f"hidden_size {self.hidden_size} is not an even multiple of num_attention_heads {heads}")
        if heads % groups:
            raise ValueError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}")
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id {self.pad_token_id} is not below vocab_size {self.vocab_size}")
        rope = self.rope_scaling or self.rope_parameters
        if rope is not None and (rope.rope_type or rope.type or "default") != "default":
            expected = self.hidden_size // heads // 2
            for name, factors in (("short_factor", rope.short_factor), ("long_factor", rope.long_factor)):
                if factors is None or len(factors) != expected:
                    raise ValueError(f"rope_scaling.{name} must be {expected} numbers, half the width of a head")
        return self


def read_config(folder: Path, tensors: Collection[str] = (), width: int | None = None) -> dict[str, Any]:
    """Reads a folder's config.json; checks it for consistency and against the weights' width and depths.

    Args:
        folder: The checkpoint.
        tensors: Names of its tensors; if there are none, depths are not compared.
        width: Width of its token embedding; None: not compared.

    Raises:
        InputError: The file is missing, damaged or of a different model, or a value is impossible or does not match the
            weights; the message names file and field.
    """
    file = folder / CONFIG_FILE
    content = read_json(file)
    kind = content.get("model_type")
    if kind != Phi3VConfig.model_type:
        raise InputError(f"{file}: model_type is {shorten(kind)}; only {Phi3VConfig.model_type!r} is supported")
    _check_width(file, content.get("hidden_size", 3072), width)
    checked(_ConfigFields, content, file)
    vision = CLIP_VIT_LARGE_PATCH14_336 | (content.get("vision_config") or {})
    depths = {
        "num_hidden_layers": (content.get("num_hidden_layers", 32), "model.layers."),
        "vision_config.num_hidden_layers": (vision["num_hidden_layers"], _VISION_LAYERS),
    }
    check_depths(file, depths, tensors)
    return content


def read_crop_and_patch_size(folder: Path) -> tuple[int, int]:
    """Reads the crop size and the patch size in pixels from a folder's config.json.

    Raises:
        InputError: The file is missing or damaged, or describes an impossible vision tower.
    """
    file = folder / CONFIG_FILE
    vision = checked(_VisionOfConfig, read_json(file), file).vision_config or _VisionFields()
    return vision.image_size, vision.patch_size


def _check_width(file: Path, written: Any, width: int | None) -> None:
    """Compares the width, before other checks, which would report a wrong width as a different problem."""
    if isinstance(written, int) and width not in (None, written):
        raise InputError(
            f"{file}: hidden_size is {written} but the weights are {width} wide (VLM2Vec's code of October 2024 wrote "
            f"4096 there); set hidden_size to {width}"
        )
