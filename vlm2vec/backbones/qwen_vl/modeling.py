"""The Qwen-VL models: transformers' layers under the published tensor names.

Because the names equal those of the published files, loading and saving need no key mapping, and adapters of the
original fit. There is no output head. Positions, windows and places of image tokens are arguments of the call, so that
the host never waits for the device.
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

# Prefixes of tensor names that transformers writes since 4.52 for Qwen2-VL and Qwen2.5-VL, and for models without the
# head (AutoModel), with the published prefixes.
_SPELLINGS = {
    "model.language_model.": "model.",
    "model.visual.": "visual.",
    "language_model.": "model.",
}


class QwenVLModel(Backbone):
    """Base of the three families' models: a decoder, and a tower whose features replace image tokens."""

    lora_targets: ClassVar[tuple[str, ...]] = (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
    attends_across_units = True
    # Prefixes of the tensor names of decoder and tower layers.
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
        """Number of decoder layers, and number of repetitions of the tower's blocks."""
        return int(config.text_config.num_hidden_layers), config.vision_config.depth // cls.repeated_blocks(config)

    @classmethod
    def with_depths(cls, config: Any, decoder: int, vision: int) -> Any:
        """The same configuration with different numbers of layers."""
        blocks = vision * cls.repeated_blocks(config)
        config = copy.deepcopy(config)
        config.text_config.num_hidden_layers, config.vision_config.depth = decoder, blocks
        if getattr(config.text_config, "layer_types", None) is not None:  # all layers have this type
            config.text_config.layer_types = ["full_attention"] * decoder
        return config

    @classmethod
    def repeated_blocks(cls, config: Any) -> int:
        """Number of tower blocks after which the sequence of block kinds repeats."""
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
        """Returns hidden states after the final norm.

        Args:
            input_ids: Token ids, int64 (n, L), padded on the right.
            attention_mask: Ignored: causal attention keeps padding on the right out of real tokens.
            position_ids: Positions on the axes time, height and width, int64 (3, n, L).
            image_rows: Index of each image token among the n * L rows, in the order of the patches, int64 (tokens,).
            dummy_image: The images belong to no row and run with weight zero, so that every rank runs the same modules
                and every vision parameter gets a gradient of exactly zero.
            images: Arguments of the tower's `forward`; none without images.

        Returns:
            States (n, L, hidden) in the model's dtype; values at padding have no meaning.
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
        """Parameters of the tower without its mergers, and of the mergers."""
        projector = [parameter for merger in self.tower.mergers() for parameter in merger.parameters()]
        of_projector = {id(parameter) for parameter in projector}
        return {
            VISION_TOWER: [each for each in self.tower.parameters() if id(each) not in of_projector],
            PROJECTOR: projector,
        }

    def unused_modules(self) -> Sequence[nn.Module]:
        """None: all modules run."""
        return ()

    def vision_modules(self) -> Sequence[nn.Module]:
        """The tower with its mergers."""
        return (self.tower,)

    def check_processor(self, processor: Any, source: Path) -> None:
        """Checks that its patches, windows and learned positions match this tower; see `Backbone.check_processor`."""
        vision, field = self.config.vision_config, processor.vision_field
        pairs = {"patch_size": processor.patch_size} | ({field: processor.table} if field else {})
        for name, made in pairs.items():
            if made != getattr(vision, name):
                raise InputError(
                    f"{source / PREPROCESSOR_FILE}: {name} is {made}, the model's is {getattr(vision, name)}"
                )

    def install_compiled(self) -> None:
        """Compiles norms, MLPs and attention, and the tower's activation if it is a quick GELU."""
        install_compiled(self)

    def _share_attention(self) -> None:
        """Sets the attention implementation of decoder and tower; transformers sets only that of the outermost part."""
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
        """The same configuration with different numbers of layers, with the same share of windowed layers."""
        full, repeated = config.vision_config.fullatt_block_indexes, cls.repeated_blocks(config)
        config = super().with_depths(config, decoder, vision)
        depth = config.vision_config.depth
        config.vision_config.fullatt_block_indexes = (
            [index for index in full if index < depth] if repeated == 1 else list(range(repeated - 1, depth, repeated))
        )
        return config

    @classmethod
    def repeated_blocks(cls, config: Any) -> int:
        """Number of windowed blocks plus one without windows: 8 at full size; 1 if they do not alternate regularly."""
        full, depth = list(config.vision_config.fullatt_block_indexes), config.vision_config.depth
        repeated = depth // max(1, len(full))
        return repeated if full == list(range(repeated - 1, depth, repeated)) else 1


class _Qwen3VLParts(nn.Module):
    """A separate module, because of the checkpoint's names `model.visual.` and `model.language_model.`."""

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
        spellings={"language_model.": "model.language_model.", "visual.": "model.visual."},  # names from AutoModel
    )
    causal_class = "Qwen3VLForConditionalGeneration"
    layer_names = ("model.language_model.layers.", "model.visual.blocks.")
    fewest_depths = (3, 3)  # one tower layer and one decoder layer per deepstack feature

    def __init__(self, config: Qwen3VLConfig) -> None:
        super().__init__(config)
        self._share_attention()
        self.model = _Qwen3VLParts(config)
        self.post_init()

    @classmethod
    def with_depths(cls, config: Any, decoder: int, vision: int) -> Any:
        """The same configuration with different numbers of layers, but the same number of deepstack features."""
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
