"""Configuration of Phi-3-V: Phi-3's language model, the image embedding, and the CLIP tower that files omit."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import CLIPVisionConfig, Phi3Config, PreTrainedConfig

# The published code hard-codes this tower (openai/clip-vit-large-patch14-336), so no published config.json has it.
CLIP_VIT_LARGE_PATCH14_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
}

# "su" is the name in Microsoft's files, "longrope" a later name of the same formula.
_LONG_ROPE_TYPES = ("su", "longrope")


def _standard_rope(rope: dict[str, Any] | None, rope_theta: Any, switch_length: int) -> dict[str, Any]:
    """Converts Microsoft's `rope_scaling` (type "su") to transformers' `rope_parameters` (rope_type "longrope")."""
    rope = dict(rope or {})
    kind = rope.pop("type", None)
    kind = rope.pop("rope_type", kind) or "default"
    rope.setdefault("rope_theta", float(rope_theta))
    if kind == "default":
        return {**rope, "rope_type": "default"}
    if kind not in _LONG_ROPE_TYPES:
        raise ValueError(f"rope_scaling type {kind!r} is not supported by Phi-3-V; expected one of {_LONG_ROPE_TYPES}")
    return {**rope, "rope_type": "longrope", "original_max_position_embeddings": switch_length}


class Phi3VConfig(Phi3Config):
    """Configuration of Phi-3-V.

    Reads Microsoft's and VLM2Vec's published files as they are, and writes the same layout (`rope_scaling` of type
    "su", and `rope_theta`), so that the original code can read what is saved here.

    Attributes:
        vision_config: Shape of the CLIP tower; ViT-L/14-336 if absent. With `image_size` S and `patch_size` P, a view
            is one S x S crop and gives (S / P / 2)^2 tokens: 144 at full size.
        img_processor, embd_layer: Settings of the image embedding in Microsoft's file; kept to be written again.
    """

    model_type = "phi3_v"
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {"vision_config": CLIPVisionConfig}

    # After construction this is always a CLIPVisionConfig.
    vision_config: Any = None
    img_processor: dict[str, Any] | None = None
    embd_layer: dict[str, Any] | None = None
    max_position_embeddings: int = 131072
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        # Microsoft's file asks for flash-attention 2, so that loading would fail without that package, and names remote
        # code. Both are choices of the caller.
        for key in ("_attn_implementation", "auto_map"):
            kwargs.pop(key, None)
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = CLIPVisionConfig(**{**CLIP_VIT_LARGE_PATCH14_336, **(self.vision_config or {})})
        rope = kwargs.pop("rope_scaling", None) or getattr(self, "rope_parameters", None)
        theta = kwargs.pop("rope_theta", None) or 10000.0
        self.rope_parameters = _standard_rope(rope, theta, self.original_max_position_embeddings)
        super().__post_init__(**kwargs)

    @property
    def view_grid(self) -> int:
        """Tokens along one side of a view: 12 at full size."""
        return view_grid(self.vision_config.image_size, self.vision_config.patch_size)

    def to_dict(self) -> dict[str, Any]:
        """The configuration in Microsoft's layout, which omits a vision tower of the default shape."""
        output: dict[str, Any] = super().to_dict()
        rope = dict(output.pop("rope_parameters"))
        output["rope_theta"] = rope["rope_theta"]
        output["rope_scaling"] = None
        if rope["rope_type"] == "longrope":
            factors = {key: rope[key] for key in ("short_factor", "long_factor")}
            output["rope_scaling"] = {"type": "su", **factors}
        vision = output.pop("vision_config")
        if any(vision.get(key) != value for key, value in CLIP_VIT_LARGE_PATCH14_336.items()):
            output["vision_config"] = {key: vision[key] for key in CLIP_VIT_LARGE_PATCH14_336}
        return output


def view_grid(image_size: int, patch_size: int) -> int:
    """Tokens along one side of a view: half the patches per side, because 2 x 2 neighbours are joined into one token.

    Raises:
        ValueError: The crop is not an even number of patches wide.
    """
    if image_size % (2 * patch_size) != 0:
        raise ValueError(f"image_size {image_size} is not an even multiple of patch_size {patch_size}")
    return image_size // (2 * patch_size)
