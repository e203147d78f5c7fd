"""Rotary position embeddings of Qwen-VL's decoder and vision tower, always computed in float32.

transformers keeps inverse frequencies in buffers, which a cast of the model (`.to(torch.bfloat16)`, DeepSpeed's
engines) rounds to 8 bits. Here they are plain tensors, cached per device, which are not cast. They are computed on the
CPU, so that every device has the same bits, and at the first call, because the module may be built under a meta device
or DeepSpeed's `zero.Init`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class _Rope(nn.Module):
    """Inverse frequencies `theta ** (-2 i / width)` for i < width / 2."""

    def __init__(self, theta: float, width: int) -> None:
        super().__init__()
        self.theta, self.width = float(theta), width
        self._frequencies: dict[torch.device, torch.Tensor] = {}

    def frequencies(self, device: torch.device) -> torch.Tensor:
        """The inverse frequencies, float32 (width / 2,)."""
        if device not in self._frequencies:
            steps = torch.arange(0, self.width, 2, dtype=torch.float32, device="cpu") / self.width
            self._frequencies[device] = (1.0 / self.theta**steps).to(device)
        return self._frequencies[device]


class DecoderRope(_Rope):
    """Rotary embedding of the decoder, with positions on three axes (M-RoPE, https://arxiv.org/abs/2409.12191).

    Args:
        theta: Base of the frequencies.
        head_dim: Width of a head.
        sections: Number of frequencies of the axes time, height and width; their sum is head_dim / 2.
        interleaved: Whether the axes alternate from the highest frequency on (Qwen3-VL), instead of one block per axis.
    """

    def __init__(self, theta: float, head_dim: int, sections: Sequence[int], interleaved: bool) -> None:
        super().__init__(theta, head_dim)
        self.axes = _interleaved_axes(sections) if interleaved else _axes_in_blocks(sections)
        self._axes_on: dict[torch.device, torch.Tensor] = {}

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines.

        Args:
            hidden: Embeddings, used for their device and dtype.
            position_ids: Positions on the axes, int64 (3, n, L).

        Returns:
            Both (n, L, head_dim) in the dtype of `hidden`.
        """
        device = hidden.device
        if device not in self._axes_on:
            self._axes_on[device] = torch.tensor(self.axes, device="cpu").to(device)
        positions = position_ids.float().index_select(0, self._axes_on[device]).permute(1, 2, 0)
        angles = positions * self.frequencies(device)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


class TowerRope(_Rope):
    """Rotary embedding of the vision tower: half of a head's frequencies encode a patch's row, half its column."""

    def __init__(self, theta: float, head_dim: int) -> None:
        super().__init__(theta, head_dim // 2)

    def forward(self, patch_positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines for `turned`, float32 (P, head_dim) each, of patches at rows and columns int64 (P, 2)."""
        angles = (patch_positions[..., None].float() * self.frequencies(patch_positions.device)).flatten(1)
        cosines, sines = angles.cos(), angles.sin()
        return torch.cat([cosines, cosines], dim=-1), torch.cat([-sines, sines], dim=-1)


def turned(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotates queries and keys by their positions, in float32: x * cos + (second half, first half of x) * sin.

    All heads are rotated at once and the sign is in the table, which takes a third of transformers' operators.

    Args:
        heads: Queries and keys, (P, n, heads, d).
        cosines: Cosines, (P, d).
        sines: Sines, (P, d), negated in the first half.

    Returns:
        The rotated heads, in the shape and dtype of `heads`.
    """
    exact = heads.float()
    first, second = exact.chunk(2, dim=-1)
    cosines, sines = cosines[:, None, None], sines[:, None, None]
    result = torch.addcmul(exact * cosines, torch.cat([second, first], dim=-1), sines)
    return result.to(heads.dtype)


def _axes_in_blocks(sections: Sequence[int]) -> list[int]:
    return [axis for axis, width in enumerate(sections) for _ in range(width)]


def _interleaved_axes(sections: Sequence[int]) -> list[int]:
    axes = [0] * sum(sections)
    for axis in (1, 2):
        for index in range(axis, 3 * sections[axis], 3):
            axes[index] = axis
    return axes
