"""Vision towers of the Qwen-VL families: transformers' layers, run on all patches of a chunk's images at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLPatchMerger,
    Qwen2_5_VLVisionBlock,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchEmbed, PatchMerger, Qwen2VLVisionBlock
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionBlock,
    Qwen3VLVisionPatchEmbed,
    Qwen3VLVisionPatchMerger,
)

from vlm2vec.backbones.qwen_vl.attention import SpanAttention, Spans
from vlm2vec.backbones.qwen_vl.rope import TowerRope

PATCHES_PER_TOKEN = 4


class PatchProjection(nn.Conv3d):
    """Patch embedding as a matrix product: a convolution whose kernel is as large as the patch is one.

    Weight and bias keep the convolution's shape, and stay in this module, where ZeRO-3 gathers them.
    """

    def forward(self, patches: Tensor) -> Tensor:
        """Maps patches (P, channels, frames, S, S) to (P, width)."""
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


class VisionTower(nn.Module):
    """Tower of Qwen2-VL: every patch attends to all patches of its image.

    Its parts have their names in published files.

    Args:
        config: The model's `vision_config`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.patch_embed, blocks, self.merger = self.layers_of(config)
        self.blocks = nn.ModuleList(blocks)
        self.rotary_pos_emb = TowerRope(config.rope_parameters["rope_theta"], blocks[0].attn.head_dim)
        self.patch_embed.proj.__class__ = PatchProjection
        for block in blocks:
            block.attn.__class__ = SpanAttention

    @staticmethod
    def layers_of(config: Any) -> tuple[nn.Module, list[Any], nn.Module]:
        """Patch embedding, blocks and merger."""
        embed = PatchEmbed(config.patch_size, config.temporal_patch_size, config.in_channels, config.embed_dim)
        merger = PatchMerger(config.hidden_size, config.embed_dim, config.spatial_merge_size)
        return embed, [Qwen2VLVisionBlock(config) for _ in range(config.depth)], merger

    def mergers(self) -> list[nn.Module]:
        """Modules that turn patches into the decoder's image tokens."""
        return [self.merger]

    def forward(self, pixel_values: Tensor, patch_positions: Tensor, image_lengths: Sequence[int]) -> list[Tensor]:
        """Features of the images' tokens.

        Args:
            pixel_values: Patches of all images in merge order, (P, channels * frames * S * S).
            patch_positions: Row and column of each patch, int64 (P, 2).
            image_lengths: Number of patches of each image. Attention runs on neighbours of equal length as one batch.

        Returns:
            A list with one tensor (P / 4, hidden of the decoder), in the order of the patches.
        """
        hidden = self.patch_embed(pixel_values)
        position_embeddings = self.rotary_pos_emb(patch_positions)
        spans = self.spans(image_lengths, hidden)
        for block in self.blocks:
            hidden = block(hidden, cu_seqlens=spans, position_embeddings=position_embeddings)
        return [self.merger(hidden)]

    def spans(self, lengths: Sequence[int], hidden: Tensor) -> Spans:
        """Spans of rows within which attention runs."""
        return Spans.of(lengths, hidden.device, self.config._attn_implementation)


class WindowedTower(VisionTower):
    """Tower of Qwen2.5-VL: most layers attend within windows of 8 x 8 patches, some to the whole image."""

    @staticmethod
    def layers_of(config: Any) -> tuple[nn.Module, list[Any], nn.Module]:
        """Patch embedding, blocks and merger."""
        embed = Qwen2_5_VisionPatchEmbed(
            config.patch_size, config.temporal_patch_size, config.in_channels, config.hidden_size
        )
        merger = Qwen2_5_VLPatchMerger(config.out_hidden_size, config.hidden_size, config.spatial_merge_size)
        return embed, [Qwen2_5_VLVisionBlock(config) for _ in range(config.depth)], merger

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        patch_positions: Tensor,
        image_lengths: Sequence[int],
        window_index: Tensor,
        window_lengths: Sequence[int],
    ) -> list[Tensor]:
        """Features of the images' tokens; see `VisionTower.forward`.

        Args:
            window_index: Indices of the tokens, window by window, int64 (P / 4,).
            window_lengths: Number of patches of each window, in that order. Attention runs on neighbours of equal
                length as one batch.
        """
        hidden = self.patch_embed(pixel_values)
        back = torch.argsort(window_index)
        by_image = self.rotary_pos_emb(patch_positions)
        by_window = tuple(_reordered(each, window_index) for each in by_image)
        layouts = (
            (self.spans(image_lengths, hidden), by_image, back),
            (self.spans(window_lengths, hidden), by_window, window_index),
        )
        in_windows = False
        for layer, block in enumerate(self.blocks):
            windowed = layer not in self.config.fullatt_block_indexes
            spans, position_embeddings, order = layouts[windowed]
            if windowed != in_windows:
                hidden, in_windows = _reordered(hidden, order), windowed
            hidden = block(hidden, cu_seqlens=spans, position_embeddings=position_embeddings)
        if in_windows:
            hidden = _reordered(hidden, back)
        return [self.merger(hidden)]


class DeepstackTower(VisionTower):
    """Tower of Qwen3-VL: learned positions, and features of inner layers for the decoder's first layers."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.pos_embed = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        mergers = [Qwen3VLVisionPatchMerger(config, use_postshuffle_norm=True) for _ in config.deepstack_visual_indexes]
        self.deepstack_merger_list = nn.ModuleList(mergers)

    @staticmethod
    def layers_of(config: Any) -> tuple[nn.Module, list[Any], nn.Module]:
        """Patch embedding, blocks and merger."""
        blocks = [Qwen3VLVisionBlock(config) for _ in range(config.depth)]
        return Qwen3VLVisionPatchEmbed(config), blocks, Qwen3VLVisionPatchMerger(config)

    def mergers(self) -> list[nn.Module]:
        """Modules that turn patches into the decoder's image tokens."""
        return [self.merger, *self.deepstack_merger_list]

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        patch_positions: Tensor,
        image_lengths: Sequence[int],
        interpolation_indices: Tensor,
        interpolation_weights: Tensor,
    ) -> list[Tensor]:
        """Features of the images' tokens; see `VisionTower.forward`.

        Args:
            interpolation_indices: Entries of the learned table around each patch, int64 (4, P).
            interpolation_weights: Their weights, float32 (4, P).

        Returns:
            Features that enter the decoder, then features to add after its first layers, one tensor per layer.
        """
        hidden = self.patch_embed(pixel_values)
        learned = (self.pos_embed(interpolation_indices) * interpolation_weights[..., None]).sum(0)
        hidden = hidden + learned.to(hidden.dtype)
        position_embeddings = self.rotary_pos_emb(patch_positions)
        spans = self.spans(image_lengths, hidden)
        deepstack = []
        for layer, block in enumerate(self.blocks):
            hidden = block(hidden, cu_seqlens=spans, position_embeddings=position_embeddings)
            for index, merger in zip(self.config.deepstack_visual_indexes, self.deepstack_merger_list, strict=True):
                if index == layer:
                    deepstack.append(merger(hidden))
        return [self.merger(hidden), *deepstack]


def _reordered(rows: Tensor, tokens: Tensor) -> Tensor:
    """Reorders rows (P, width) by token; each token is four neighbouring rows."""
    return rows.view(-1, PATCHES_PER_TOKEN, rows.shape[-1]).index_select(0, tokens).flatten(0, 1)
