"""Rotary position embedding with LongRoPE factors, in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from vlm2vec.backbones.phi3_v.configuration import Phi3VConfig


class LongRope(nn.Module):
    """Rotary embedding with LongRoPE factors (https://arxiv.org/abs/2402.13753), always computed in float32.

    There are no buffers: a cast of the module (`.to(torch.bfloat16)`, DeepSpeed's bf16 engine) would round inverse
    frequencies to 8 bits, which lowers the embedding's cosine to float32 from 0.998 to 0.93. Plain tensors, cached per
    device, are not cast.
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
        """Inverse frequencies with short and with long factors, (2, head_dim / 2).

        Computed at the first call and not in `__init__`, which may run under a meta device or DeepSpeed's `zero.Init`,
        which casts new tensors. Always computed on the CPU, so that every device has the same bits.
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
            hidden: Embeddings (n, L, hidden), used for their length, device and dtype.
            lengths: Number of real tokens of each row (n,), by which each row uses short or long factors. None: the
                padded length L decides for all rows, as in the original.

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
