"""The model: transformers' Phi-3 layers and CLIP tower composed under the checkpoint's own tensor names.

Names equal to the published files mean no key mapping on load or save, and adapters of the original fit. What the
embedding cannot see is not computed: no `lm_head`, no zero crops, no last CLIP layer, no stored hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers import initialization as init
from transformers.models.phi3.modeling_phi3 import Phi3Model, Phi3PreTrainedModel

from vlm2vec.errors import InputError
from vlm2vec.phi3_v.checkpoint import check_tensors, checkpoint_shapes, load_config, resolve_folder
from vlm2vec.phi3_v.configuration import Phi3VConfig


class LongRope(nn.Module):
    """Rotary embedding with LongRoPE factors (https://arxiv.org/abs/2402.13753), always computed in float32.

    There are no buffers: a cast of the module (`.to(torch.bfloat16)`, DeepSpeed's bf16 engine) would round inverse
    frequencies to 8 bits, which moves the embedding's cosine to float32 from 0.998 to 0.93. Plain tensors, kept per
    device, cannot be cast.
    """

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        rope = config.rope_parameters
        self.theta = float(rope["rope_theta"])
        self.half_head_dim = config.hidden_size // config.num_attention_heads // 2
        self.switch_length = config.original_max_position_embeddings
        self.factors: tuple[Sequence[float], Sequence[float]] = ([1.0] * self.half_head_dim, [1.0] * self.half_head_dim)
        self.scaling = 1.0
        if rope["rope_type"] == "longrope":
            self.factors = (rope["short_factor"], rope["long_factor"])
            extension = config.max_position_embeddings / self.switch_length
            if extension > 1:
                self.scaling = math.sqrt(1 + math.log(extension) / math.log(self.switch_length))
        self._on_device: dict[torch.device, torch.Tensor] = {}

    def frequencies(self, device: torch.device) -> torch.Tensor:
        """Inverse frequencies (2, head_dim / 2): with short factors, with long factors.

        Made at the first call and not in `__init__`, where a meta device or DeepSpeed's `zero.Init`, which casts what
        tensor constructors return, may be in force. Always computed on the CPU, so that every device has the same bits.
        """
        if device not in self._on_device:
            steps = torch.arange(0, 2 * self.half_head_dim, 2, dtype=torch.int64, device="cpu").float()
            base = self.theta ** (steps / (2 * self.half_head_dim))
            factors = torch.tensor(self.factors, dtype=torch.float32, device="cpu")
            self._on_device[device] = (1.0 / (factors * base)).to(device)
        return self._on_device[device]

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines for positions 0 to L - 1.

        Args:
            hidden: (n, L, hidden), for its length, device and dtype.
            lengths: real tokens of each row (n,): every row then chooses short or long factors by its own length.
                None: the padded length L decides for all rows, as in the original.

        Returns:
            cos and sin, each (1 or n, L, head_dim) in the dtype of `hidden`.
        """
        device, width = hidden.device, hidden.shape[1]
        short, long = self.frequencies(device)
        if width <= self.switch_length:
            frequencies = short[None]
        elif lengths is None:
            frequencies = long[None]
        else:
            frequencies = torch.where((lengths > self.switch_length)[:, None], long, short)
        positions = torch.arange(width, device=device, dtype=torch.float32)
        angles = positions[None, :, None] * frequencies[:, None, :]
        angles = torch.cat([angles, angles], dim=-1)
        return (angles.cos() * self.scaling).to(hidden.dtype), (angles.sin() * self.scaling).to(hidden.dtype)


class VisionTower(nn.Module):
    """CLIP up to the input of its last layer; a module of its own for the checkpoint's name `img_processor.`."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.vision_model = CLIPVisionModel(config)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Patch features without the class token: (crops, 3, S, S) to (crops, patches, width)."""
        tower = self.vision_model
        hidden: torch.Tensor = tower.pre_layrnorm(tower.embeddings(pixel_values))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, None)
        return hidden[:, 1:]

    def unused_modules(self) -> tuple[nn.Module, ...]:
        """The parts of the checkpoint that no embedding depends on: the last layer and the norm behind it."""
        return self.vision_model.encoder.layers[-1], self.vision_model.post_layernorm


class ImageEmbedding(nn.Module):
    """Crops to image tokens: CLIP features, 2 x 2 neighbours joined, separators, a two-layer projection."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        vision = config.vision_config
        width = 4 * vision.hidden_size
        self.grid = config.view_grid
        self.crop_size = vision.image_size
        self.img_processor = VisionTower(vision)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, width))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.img_projection = nn.Sequential(
            nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def forward(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor | None) -> torch.Tensor:
        """Image tokens of all pictures, one after another.

        Args:
            pixel_values: (real crops, 3, S, S), per picture the global view, then the local crops row by row.
            image_sizes: int (pictures, 2), padded (height, width), on the CPU. None: the crops are no pictures (the
                dummy of a rank without pictures) and come out in any order, separators included.

        Returns:
            (image tokens, hidden).
        """
        features = self._views(pixel_values)
        rows = len(features) * self.grid
        if image_sizes is None:
            num_pictures, order = 1, None
        else:
            num_pictures = len(image_sizes)
            sizes = (image_sizes // self.crop_size).tolist()
            rows, index = _sequence_order(sizes, self.grid)
            order = index.to(features.device, non_blocking=True)
        width = features.shape[-1]
        # Every entry is used exactly once, so that the gather's backward has no colliding (unordered) additions.
        table = torch.cat(
            [
                features.reshape(-1, width),
                self.sub_GN.reshape(1, width).expand(rows, width),
                self.glb_GN.reshape(1, width).expand(num_pictures, width),
            ]
        )
        result: torch.Tensor = self.img_projection(table if order is None else table.index_select(0, order))
        return result

    def _views(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """CLIP's features, 2 x 2 neighbours joined into one: (crops, grid * grid, 4 width)."""
        hidden = self.img_processor(pixel_values)
        crops, _, width = hidden.shape
        patches: torch.Tensor = hidden.reshape(crops, self.grid, 2, self.grid, 2, width)
        return patches.permute(0, 1, 3, 2, 4, 5).reshape(crops, self.grid * self.grid, 4 * width)


def _sequence_order(sizes: Sequence[Sequence[int]], grid: int) -> tuple[int, torch.Tensor]:
    """Where each image token of the sequence stands in the table [features, line separators, view separators].

    Per picture: the token rows of the assembled local crops, each ended by a separator; one view separator; the token
    rows of the global view, each ended by a separator.

    Args:
        sizes: per picture (rows, columns) of local crops.
        grid: tokens along one side of a view.

    Returns:
        The number of line separators, and int64 indices (image tokens,), a permutation of the table.
    """
    num_views = sum(1 + rows * columns for rows, columns in sizes)
    num_lines = sum((1 + rows) * grid for rows, columns in sizes)
    table = torch.arange(num_views * grid * grid).view(num_views, grid, grid)
    lines_of = [count for rows, _ in sizes for count in (rows * grid, grid)]
    lines = iter(torch.split(torch.arange(num_lines) + table.numel(), lines_of))
    parts: list[torch.Tensor] = []
    view = 0
    for picture, (rows, columns) in enumerate(sizes):
        local = table[view + 1 : view + 1 + rows * columns].view(rows, columns, grid, grid)
        local = local.permute(0, 2, 1, 3).reshape(rows * grid, columns * grid)
        parts.append(torch.cat([local, next(lines)[:, None]], dim=1).flatten())
        parts.append(torch.tensor([table.numel() + num_lines + picture]))
        parts.append(torch.cat([table[view], next(lines)[:, None]], dim=1).flatten())
        view += 1 + rows * columns
    return num_lines, torch.cat(parts)


class Phi3VBackbone(Phi3Model):
    """Phi-3's decoder with the image embedding inside, as the checkpoint's names have it."""

    config_class = Phi3VConfig

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.rotary_emb = LongRope(config)
        self.vision_embed_tokens = ImageEmbedding(config)
        self.post_init()

    def forward(self, embeddings: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """Runs the decoder on merged embeddings (n, L, hidden); returns states after the final norm, same shape.

        Rows are padded on the right, so that causal attention alone keeps padding out of every real token. Without a
        padding mask the fast kernels apply, and nothing has to be looked up on the device.
        """
        position_embeddings = self.rotary_emb(embeddings, lengths)
        mask = None
        if self.config._attn_implementation == "eager":  # the others are causal by themselves
            width = embeddings.shape[1]
            mask = torch.full((width, width), torch.finfo(embeddings.dtype).min, device=embeddings.device)
            mask = mask.to(embeddings.dtype).triu_(1)[None, None]
        hidden = embeddings
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=position_embeddings)
        normed: torch.Tensor = self.norm(hidden)
        return normed


class Phi3VModel(Phi3PreTrainedModel):
    """Phi-3-V without its language-model head.

    Parameter names are the checkpoint's: `model.layers.N...`, `model.vision_embed_tokens...`.
    """

    config_class = Phi3VConfig
    _no_split_modules = ("Phi3DecoderLayer", "CLIPEncoderLayer")
    _keys_to_ignore_on_load_unexpected = (r"^lm_head\.", r"^model\.vision_embed_tokens\.wte\.")

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.model = Phi3VBackbone(config)
        self.post_init()
        self.freeze_unused()

    @classmethod
    def from_pretrained(cls, path: str | Path, **kwargs: Any) -> Phi3VModel:
        """Loads a checkpoint and makes sure that every tensor found its place.

        Args:
            path: a folder (single file or shards, safetensors or `.bin` pickles, which are opened with
                `weights_only=True`) or the name of a Hugging Face repository.
            kwargs: as for `transformers.PreTrainedModel.from_pretrained`: dtype (default: as stored),
                attn_implementation, device_map, ...

        Raises:
            InputError: missing or unexpected tensors (only `lm_head` and the second name of the token embedding may be
                left over), other shapes, or a configuration that does not fit the weights.
        """
        folder = resolve_folder(path)
        found = checkpoint_shapes(folder)
        config = kwargs.pop("config", None) or load_config(folder, found)
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in cls(config).state_dict().items()}
        renaming = check_tensors(folder, found, expected)
        model, info = super().from_pretrained(
            str(folder), config=config, key_mapping=renaming or None, output_loading_info=True, **kwargs
        )
        if info["missing_keys"]:  # would be random numbers
            raise InputError(f"{folder}: tensors were not loaded: {sorted(info['missing_keys'])[:3]}")
        model.freeze_unused()  # loading put new parameters in the place of the frozen ones
        model.config.name_or_path = model.name_or_path = str(path)
        result: Phi3VModel = model
        return result

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        dummy_image: bool = False,
        rope_by_row: bool = False,
    ) -> torch.Tensor:
        """Hidden states after the final norm.

        Args:
            input_ids: int (n, L), padded on the right; image tokens are negative. Pictures fill the negative positions
                row by row in the order of `image_sizes`; which picture an id names does not matter, as in the original.
            attention_mask: int (n, L), 1 on real tokens, all of them left of the padding. It only tells the rows'
                lengths to `rope_by_row`: causal attention already keeps padding on the right out of real tokens.
            pixel_values: float, all pictures' real crops one after another (crops, 3, S, S), or padded with zero crops
                to one number (pictures, crops, 3, S, S); the zero crops are then left out.
            image_sizes: int (pictures, 2), padded (height, width) of each picture. Leave it on the CPU: the layout is
                computed on the host, and nothing else in here makes the host wait.
            dummy_image: without pictures, run the vision tower and the projection on one zero crop with weight zero,
                so that every rank runs the same modules and every vision parameter gets a gradient, exactly zero.
            rope_by_row: rows of up to 4096 real tokens use the short rope factors whatever the batch's width; False is
                the original's behaviour, where the padded width decides for all rows.

        Returns:
            (n, L, hidden) in the model's dtype; positions of padding hold no meaningful values.
        """
        images = self.model.vision_embed_tokens
        image_positions = (input_ids < 0)[..., None]
        embeddings = self.model.embed_tokens(input_ids.clamp(min=0))
        if pixel_values is not None and image_sizes is not None:
            pixel_values = pixel_values if pixel_values.dim() == 4 else _real_crops(pixel_values, image_sizes, images)
            features = images(pixel_values.to(embeddings.dtype), image_sizes)
            if input_ids.device.type == "cpu" and int(image_positions.sum()) != len(features):
                raise ValueError(f"{int(image_positions.sum())} image ids but {len(features)} image tokens")
            embeddings = embeddings.masked_scatter(image_positions, features.to(embeddings.dtype))
        elif dummy_image:
            crop = embeddings.new_zeros(1, 3, images.crop_size, images.crop_size)
            embeddings = embeddings + (images(crop, None) * 0.0).sum()
        lengths = attention_mask.sum(dim=1) if rope_by_row and attention_mask is not None else None
        hidden: torch.Tensor = self.model(embeddings, lengths)
        return hidden

    def freeze_unused(self) -> None:
        """Stops training what never runs, adapters on it included: it would wait for gradients that never come."""
        for module in self.model.vision_embed_tokens.img_processor.unused_modules():
            module.requires_grad_(False)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ImageEmbedding):
            init.zeros_(module.glb_GN)
            init.zeros_(module.sub_GN)


def _real_crops(pixel_values: torch.Tensor, image_sizes: torch.Tensor, images: ImageEmbedding) -> torch.Tensor:
    """(pictures, crops, 3, S, S) without the zero crops: (real crops, 3, S, S)."""
    counts = [1 + rows * columns for rows, columns in (image_sizes // images.crop_size).tolist()]
    return torch.cat([crops[:count] for crops, count in zip(pixel_values, counts, strict=True)])
