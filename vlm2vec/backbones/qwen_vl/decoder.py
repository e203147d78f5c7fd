"""Qwen-VL's decoder: transformers' layers between the token embedding and the final norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm2vec.backbones.qwen_vl.rope import DecoderRope


class Decoder(nn.Module):
    """Decoder from embeddings, images included, to hidden states. Its parts have their names in published files.

    Args:
        config: The model's `text_config`.
        layer: Makes a layer from the configuration and its number.
        norm: Makes a norm from its width and epsilon.
        interleaved_rope: See `DecoderRope`.
    """

    def __init__(
        self,
        config: Any,
        layer: Callable[[Any, int], nn.Module],
        norm: Callable[[int, float], nn.Module],
        interleaved_rope: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = norm(config.hidden_size, config.rms_norm_eps)
        sections = mrope_sections(config, interleaved_rope)
        self.rotary_emb = DecoderRope(config.rope_parameters["rope_theta"], head_dim, sections, interleaved_rope)

    def forward(
        self, embeddings: Tensor, position_ids: Tensor, image_rows: Tensor | None, deepstack: Sequence[Tensor]
    ) -> Tensor:
        """Runs the layers.

        Rows are padded on the right, so that causal attention alone keeps padding out of every real token. Without a
        padding mask, the fast kernels apply, and the host need not read anything from the device.

        Args:
            embeddings: Embeddings (n, L, hidden).
            position_ids: Positions on the axes time, height and width, int64 (3, n, L).
            image_rows: Index of each image token among the n * L rows, int64 (tokens,).
            deepstack: Features (tokens, hidden) each, added at these rows after the first layer, the second, ...

        Returns:
            States after the final norm, (n, L, hidden).
        """
        position_embeddings = self.rotary_emb(embeddings, position_ids)
        mask = _causal_mask(embeddings) if self.config._attn_implementation == "eager" else None
        hidden = embeddings
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, attention_mask=mask, position_embeddings=position_embeddings)
            if index < len(deepstack):
                added = deepstack[index].to(hidden.dtype)
                hidden = hidden.flatten(0, 1).index_add(0, image_rows, added).view_as(hidden)
        normed: Tensor = self.norm(hidden)
        return normed


def mrope_sections(config: Any, interleaved: bool) -> list[int]:
    """Number of frequencies of the axes time, height and width; transformers' default if the file has none."""
    default = [24, 20, 20] if interleaved else [16, 24, 24]
    return list(config.rope_parameters.get("mrope_section", default))


def _causal_mask(embeddings: Tensor) -> Tensor:
    """Mask for eager attention; other implementations need no mask to be causal."""
    width = embeddings.shape[1]
    mask = torch.full((width, width), torch.finfo(embeddings.dtype).min, device=embeddings.device)
    return mask.to(embeddings.dtype).triu_(1)[None, None]
