"""The models: transformers' layers composed under the published tensor names.

Names equal to the published files mean no key mapping on load or save, and adapters of the original fit. There is no
output head; positions, windows and the places of image tokens come with the call, so that nothing waits for the device.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLDecoderLayer,
    Qwen2_5_VLPreTrainedModel,
    Qwen2_5_VLRMSNorm,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLDecoderLayer, Qwen2VLPreTrainedModel, Qwen2VLRMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLPreTrainedModel,
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextRMSNorm,
)

from vlm2vec.backbones.checkpoint import Shape, TensorNames
from vlm2vec.backbones.interface import PROJECTOR, VISION_TOWER, Backbone
from vlm2vec.backbones.qwen_vl.compiled import install_compiled
from vlm2vec.backbones.qwen_vl.config_file import read_config
from vlm2vec.backbones.qwen_vl.configuration import Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig
from vlm2vec.backbones.qwen_vl.decoder import Decoder
from vlm2vec.backbones.qwen_vl.items.preprocessor_file import PREPROCESSOR_FILE
from vlm2vec.backbones.qwen_vl.tower import DeepstackTower, VisionTower, WindowedTower
from vlm2vec.errors import InputError

# Beginnings of tensor names in transformers since 4.52 for Qwen2-VL and Qwen2.5-VL, and of those that it writes for the
# model without its head (AutoModel); with the published ones.
_SPELLINGS = {
    "model.language_model.": "model.",
    "model.visual.": "visual.",
    "language_model.": "model.",
}


class QwenVLModel(Backbone):
    """What the three families have in common: a decoder, and a tower whose features take the places of image tokens."""

    lora_targets: ClassVar[tuple[str, ...]] = (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
    attends_across_units = True
    # What the names of the tensors of decoder and tower layers begin with.
    layer_names: ClassVar[tuple[str, str]] = ("model.layers.", "visual.blocks.")

    @property
    def tower(self) -> VisionTower:
        """All that runs for images only."""
        tower: VisionTower = self.visual
        return tower

    @property
    def decoder(self) -> Decoder:
        """All that runs for texts too."""
        decoder: Decoder = self.model
        return decoder

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.decoder.embed_tokens

    @classmethod
    def load_config(cls, folder: Path, found: Mapping[str, Shape]) -> Any:
        """See `Backbone.load_config`."""
        return read_config(cls.config_class, folder, found, cls.tensor_names, cls.layer_names)

    @classmethod
    def depths(cls, config: Any) -> tuple[int, int]:
        """Layers of the decoder; how often the tower's layers repeat."""
        return int(config.text_config.num_hidden_layers), config.vision_config.depth // cls.repeated_blocks(config)

    @classmethod
    def with_depths(cls, config: Any, decoder: int, vision: int) -> Any:
        """The same configuration with other numbers of layers."""
        blocks = vision * cls.repeated_blocks(config)
        config = copy.deepcopy(config)
        config.text_config.num_hidden_layers, config.vision_config.depth = decoder, blocks
        if getattr(config.text_config, "layer_types", None) is not None:  # all alike
            config.text_config.layer_types = ["full_attention"] * decoder
        return config

    @classmethod
    def repeated_blocks(cls, config: Any) -> int:
        """Blocks of the tower after which the same kinds of blocks follow again."""
        return 1

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        position_ids: Tensor,
        image_rows: Tensor | None = None,
        dummy_image: bool = False,
        **images: Any,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            input_ids: int64 (n, L), padded on the right.
            attention_mask: Not needed: causal attention keeps padding on the right out of real tokens.
            position_ids: int64 (3, n, L), positions on the axes time, height and width.
            image_rows: int64 (tokens,), where each token of the images belongs in the n * L rows, in the order of their
                patches.
            dummy_image: The images belong to no row: they run with weight zero, so that every rank runs the same
                modules and every vision parameter gets a gradient, exactly zero.
            images: What the tower's `forward` takes; nothing without images.

        Returns:
            (n, L, hidden) in the model's dtype; positions of padding hold no meaningful values.
        """
        embeddings: Tensor = self.decoder.embed_tokens(input_ids)
        deepstack: Sequence[Tensor] = ()
        if images:
            features, *deepstack = [each.to(embeddings.dtype) for each in self.tower(**images)]
            if dummy_image:
                embeddings = embeddings + sum((each * 0.0).sum() for each in (features, *deepstack))
                deepstack = ()
            else:
                rows = embeddings.flatten(0, 1).index_copy(0, image_rows, features)  # type: ignore[arg-type]
                embeddings = rows.view_as(embeddings)
        hidden: Tensor = self.decoder(embeddings, position_ids, image_rows, deepstack)
        return hidden

    def freezable(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """The tower without its mergers; the mergers."""
        projector = [parameter for merger in self.tower.mergers() for parameter in merger.parameters()]
        of_projector = {id(parameter) for parameter in projector}
        return {
            VISION_TOWER: [each for each in self.tower.parameters() if id(each) not in of_projector],
            PROJECTOR: projector,
        }

    def unused_modules(self) -> Sequence[nn.Module]:
        """Everything runs."""
        return ()

    def vision_modules(self) -> Sequence[nn.Module]:
        """The tower with its mergers."""
        return (self.tower,)

    def check_processor(self, processor: Any, source: Path) -> None:
        """Whether its patches, and what it knows of windows or of learned positions, are those of this tower."""
        vision, field = self.config.vision_config, processor.vision_field
        pairs = {"patch_size": processor.patch_size} | ({field: processor.table} if field else {})
        for name, made in pairs.items():
            if made != getattr(vision, name):
                raise InputError(
                    f"{source / PREPROCESSOR_FILE}: {name} is {made}, the model's is {getattr(vision, name)}"
                )

    def install_compiled(self) -> None:
        """All norms; the tower's activation where it is a quick GELU."""
        install_compiled(self)

    def _share_attention(self) -> None:
        """Decoder and tower attend as the whole model does; transformers decides it for the outermost part alone."""
        self.config._attn_implementation = self.config._attn_implementation


class Qwen2VLModel(QwenVLModel, Qwen2VLPreTrainedModel):
    """Qwen2-VL without its output head. Parameter names are the checkpoint's: `visual...`, `model.layers.N...`."""

    config_class = Qwen2VLConfig
    tensor_names = TensorNames("model.embed_tokens.weight", spellings=_SPELLINGS)
    causal_class = "Qwen2VLForConditionalGeneration"

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__(config)
        self._share_attention()
        self.visual = VisionTower(config.vision_config)
        self.model = Decoder(config.text_config, Qwen2VLDecoderLayer, Qwen2VLRMSNorm)
        self.post_init()


class Qwen2_5_VLModel(QwenVLModel, Qwen2_5_VLPreTrainedModel):  # noqa: N801  (the model's name)
    """Qwen2.5-VL without its output head. Parameter names are the checkpoint's: `visual...`, `model.layers.N...`."""

    config_class = Qwen2_5_VLConfig
    tensor_names = TensorNames("model.embed_tokens.weight", spellings=_SPELLINGS)
    causal_class = "Qwen2_5_VLForConditionalGeneration"

    def __init__(self, config: Qwen2_5_VLConfig) -> None:
        super().__init__(config)
        self._share_attention()
        self.visual = WindowedTower(config.vision_config)
        self.model = Decoder(config.text_config, Qwen2_5_VLDecoderLayer, Qwen2_5_VLRMSNorm)
        self.post_init()

    @classmethod
    def with_depths(cls, config: Any, decoder: int, vision: int) -> Any:
        """The same configuration with other numbers of layers, as many of them with windows in proportion."""
        full, repeated = config.vision_config.fullatt_block_indexes, cls.repeated_blocks(config)
        config = super().with_depths(config, decoder, vision)
        depth = config.vision_config.depth
        config.vision_config.fullatt_block_indexes = (
            [index for index in full if index < depth] if repeated == 1 else list(range(repeated - 1, depth, repeated))
        )
        return config

    @classmethod
    def repeated_blocks(cls, config: Any) -> int:
        """Windowed blocks and one without windows: 8 at full size; 1 if they do not alternate regularly."""
        full, depth = list(config.vision_config.fullatt_block_indexes), config.vision_config.depth
        repeated = depth // max(1, len(full))
        return repeated if full == list(range(repeated - 1, depth, repeated)) else 1


class _Qwen3VLParts(nn.Module):
    """A module of its own for the checkpoint's names `model.visual.` and `model.language_model.`."""

    def __init__(self, config: Qwen3VLConfig) -> None:
        super().__init__()
        self.visual = DeepstackTower(config.vision_config)
        self.language_model = Decoder(
            config.text_config, Qwen3VLTextDecoderLayer, Qwen3VLTextRMSNorm, interleaved_rope=True
        )


class Qwen3VLModel(QwenVLModel, Qwen3VLPreTrainedModel):
    """Qwen3-VL without its output head.

    Parameter names are the checkpoint's: `model.visual...`, `model.language_model.layers.N...`.
    """

    config_class = Qwen3VLConfig
    tensor_names = TensorNames(
        "model.language_model.embed_tokens.weight",
        spellings={"language_model.": "model.language_model.", "visual.": "model.visual."},  # AutoModel's
    )
    causal_class = "Qwen3VLForConditionalGeneration"
    layer_names = ("model.language_model.layers.", "model.visual.blocks.")
    fewest_depths = (3, 3)  # as many as deepstack features, each of which leaves and enters at a layer of its own

    def __init__(self, config: Qwen3VLConfig) -> None:
        super().__init__(config)
        self._share_attention()
        self.model = _Qwen3VLParts(config)
        self.post_init()

    @classmethod
    def with_depths(cls, config: Any, decoder: int, vision: int) -> Any:
        """The same configuration with other numbers of layers; the deepstack features stay as many."""
        indexes = config.vision_config.deepstack_visual_indexes
        config = super().with_depths(config, decoder, vision)
        first = vision - len(indexes)
        config.vision_config.deepstack_visual_indexes = [min(at, first + i) for i, at in enumerate(indexes)]
        return config

    @property
    def tower(self) -> VisionTower:
        """All that runs for images only."""
        return self.model.visual

    @property
    def decoder(self) -> Decoder:
        """All that runs for texts too."""
        return self.model.language_model
