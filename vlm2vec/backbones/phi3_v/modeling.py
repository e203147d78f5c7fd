"""The Phi-3-V model: transformers' Phi-3 layers and CLIP tower under the checkpoint's tensor names.

Because the names equal those of the published files, loading and saving need no key mapping, and adapters of the
original fit. What does not affect embeddings is not computed: `lm_head`, zero crops, the last CLIP layer, stored hidden
states.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.models.phi3.modeling_phi3 import Phi3Model, Phi3PreTrainedModel

from vlm2vec.backbones.checkpoint import Shape
from vlm2vec.backbones.interface import PROJECTOR, VISION_TOWER, Backbone
from vlm2vec.backbones.phi3_v.checkpoint import NAMES, load_config
from vlm2vec.backbones.phi3_v.compiled import install_compiled
from vlm2vec.backbones.phi3_v.configuration import Phi3VConfig
from vlm2vec.backbones.phi3_v.processor import PREPROCESSOR_FILE, Phi3VProcessor
from vlm2vec.backbones.phi3_v.rope import LongRope
from vlm2vec.backbones.phi3_v.vision import ImageEmbedding
from vlm2vec.errors import InputError


class Phi3VBackbone(Phi3Model):
    """Phi-3's decoder, which contains the image embedding, as in the checkpoint's names."""

    config_class = Phi3VConfig

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.rotary_emb = LongRope(config)
        self.vision_embed_tokens = ImageEmbedding(config)
        self.post_init()

    def forward(self, embeddings: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """Runs the decoder on merged embeddings (n, L, hidden); returns states after the final norm in the same shape.

        Rows are padded on the right, so that causal attention alone keeps padding out of every real token. Without a
        padding mask, the fast kernels apply, and the host need not read anything from the device.
        """
        position_embeddings = self.rotary_emb(embeddings, lengths)
        mask = None
        if self.config._attn_implementation == "eager":  # other implementations need no mask to be causal
            width = embeddings.shape[1]
            mask = torch.full((width, width), torch.finfo(embeddings.dtype).min, device=embeddings.device)
            mask = mask.to(embeddings.dtype).triu_(1)[None, None]
        hidden = embeddings
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=position_embeddings)
        normed: torch.Tensor = self.norm(hidden)
        return normed


class Phi3VModel(Backbone, Phi3PreTrainedModel):
    """Phi-3-V without its language-model head.

    Parameter names are the checkpoint's: `model.layers.N...`, `model.vision_embed_tokens...`.
    """

    config_class = Phi3VConfig
    tensor_names = NAMES
    # The language model's linear layers and the vision tower's attention: the original's `--lora_target_modules`.
    lora_targets: ClassVar[tuple[str, ...]] = (
        *("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        *("k_proj", "q_proj", "out_proj", "v_proj"),
    )
    causal_class = "Phi3VForCausalLM"
    fewest_depths = (1, 2)  # the tower's last layer is never run
    _no_split_modules = ("Phi3DecoderLayer", "CLIPEncoderLayer")

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.model = Phi3VBackbone(config)
        self.post_init()
        self.freeze_unused()

    @classmethod
    def load_config(cls, folder: Path, found: Mapping[str, Shape]) -> Phi3VConfig:
        """See `Backbone.load_config`."""
        return load_config(folder, found)

    @classmethod
    def depths(cls, config: Phi3VConfig) -> tuple[int, int]:
        """Layers of the language model and of CLIP, including CLIP's last layer, which is not run."""
        return int(config.num_hidden_layers), int(config.vision_config.num_hidden_layers)

    @classmethod
    def with_depths(cls, config: Phi3VConfig, decoder: int, vision: int) -> Phi3VConfig:
        """The same configuration with the given numbers of layers."""
        config = copy.deepcopy(config)
        config.num_hidden_layers, config.vision_config.num_hidden_layers = decoder, vision
        return config

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        dummy_image: bool = False,
        rope_by_row: bool = True,
    ) -> torch.Tensor:
        """Returns hidden states after the final norm.

        Args:
            input_ids: Token ids, int (n, L), padded on the right; image tokens are negative. Images fill the negative
                positions row by row in the order of `image_sizes`, whatever their ids, as in the original.
            attention_mask: 1 on real tokens, all left of the padding, int (n, L). It only gives the rows' lengths for
                `rope_by_row`: causal attention already keeps padding on the right out of real tokens.
            pixel_values: All images' real crops concatenated, float (crops, 3, S, S), or padded with zero crops to an
                equal number, float (images, crops, 3, S, S); the zero crops are then left out.
            image_sizes: Padded (height, width) of each image, int (images, 2). Leave it on the CPU: the layout is
                computed on the host, and nothing else here makes the host wait.
            dummy_image: Without images, run the vision tower and the projection on one zero crop with weight zero, so
                that every rank runs the same modules and every vision parameter gets a gradient of exactly zero.
            rope_by_row: Use the short rope factors for rows of up to 4096 real tokens, whatever the batch's width.
                False: the padded width decides for all rows, as in the original.

        Returns:
            States (n, L, hidden) in the model's dtype; values at padding have no meaning.
        """
        images = self.model.vision_embed_tokens
        image_positions = (input_ids < 0)[..., None]
        embeddings = self.model.embed_tokens(input_ids.clamp(min=0))
        if pixel_values is not None and image_sizes is not None:
            pixel_values = pixel_values if pixel_values.dim() == 4 else images.real_crops(pixel_values, image_sizes)
            features = images(pixel_values.to(embeddings.dtype), image_sizes)
            # Checked only on the CPU: on a device the host would have to wait for the sum.
            if input_ids.device.type == "cpu" and int(image_positions.sum()) != len(features):
                raise ValueError(f"{int(image_positions.sum())} image ids but {len(features)} image tokens")
            embeddings = embeddings.masked_scatter(image_positions, features.to(embeddings.dtype))
        elif dummy_image:
            # Weight zero changes no embedding, but gives every vision parameter a gradient.
            crop = embeddings.new_zeros(1, 3, images.crop_size, images.crop_size)
            embeddings = embeddings + (images(crop, None) * 0.0).sum()
        lengths = attention_mask.sum(dim=1) if rope_by_row and attention_mask is not None else None
        hidden: torch.Tensor = self.model(embeddings, lengths)
        return hidden

    def original_arguments(self) -> Mapping[str, Any]:
        """Arguments of the original's behaviour: the padded width of a call decides the rope factors of all rows."""
        return {"rope_by_row": False}

    def freezable(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Parameters of CLIP, and of the projection with the separators."""
        images = self.model.vision_embed_tokens
        return {
            VISION_TOWER: list(images.img_processor.parameters()),
            PROJECTOR: [*images.img_projection.parameters(), images.glb_GN, images.sub_GN],
        }

    def unused_modules(self) -> Sequence[nn.Module]:
        """CLIP's last layer and the norm after it."""
        return self.model.vision_embed_tokens.img_processor.unused_modules()

    def vision_modules(self) -> Sequence[nn.Module]:
        """The whole image embedding."""
        return (self.model.vision_embed_tokens,)

    def check_processor(self, processor: Phi3VProcessor, source: Path) -> None:
        """Checks that its crops have the size that CLIP expects; see `Backbone.check_processor`."""
        images, vision = processor.image_processor, self.config.vision_config
        sizes = (images.crop_size, images.patch_size)
        if sizes != (vision.image_size, vision.patch_size):
            raise InputError(
                f"{source / PREPROCESSOR_FILE}: crop_size and patch_size are {sizes[0]} and {sizes[1]}, the model's "
                f"are {vision.image_size} and {vision.patch_size}"
            )

    def install_compiled(self) -> None:
        """Compiles Phi-3's norms, attention and MLP, and CLIP's norms and activation."""
        install_compiled(self)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ImageEmbedding):
            init.zeros_(module.glb_GN)
            init.zeros_(module.sub_GN)
