"""Rotary position embeddings of decoder and vision tower, always computed in float32.

transformers keeps inverse frequencies in buffers, which a cast of the model (`.to(torch.bfloat16)`, DeepSpeed's
engines) rounds to 8 bits. Here they are plain tensors, kept per device, which cannot be cast. They are made on the CPU
at the first call, so that every device has the same bits, and not where the module is made: a meta device or
DeepSpeed's `zero.Init` may be in force there.
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
        """Float32 (width / 2,)."""
        if device not in self._frequencies:
            steps = torch.arange(0, self.width, 2, dtype=torch.float32, device="cpu") / self.width
            self._frequencies[device] = (1.0 / self.theta**steps).to(device)
        return self._frequencies[device]


class DecoderRope(_Rope):
    """The decoder's, with positions on three axes (M-RoPE, https://arxiv.org/abs/2409.12191).

    Args:
        theta: Base of the frequencies.
        head_dim: Width of a head.
        sections: Frequencies of the axes time, height and width; their sum is head_dim / 2.
        interleaved: Whether the axes take turns from the highest frequency on (Qwen3-VL), instead of a block each.
    """

    def __init__(self, theta: float, head_dim: int, sections: Sequence[int], interleaved: bool) -> None:
        super().__init__(theta, head_dim)
        self.axes = _interleaved_axes(sections) if interleaved else _axes_in_blocks(sections)
        self._axes_on: dict[torch.device, torch.Tensor] = {}

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines.

        Args:
            hidden: For its device and dtype.
            position_ids: int64 (3, n, L).

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
    """The vision tower's: half of a head's frequencies turn with a patch's row, half with its column."""

    def __init__(self, theta: float, head_dim: int) -> None:
        super().__init__(theta, head_dim // 2)

    def forward(self, patch_positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `turned` takes, float32 (P, head_dim) each, for patches at int64 (P, 2): row and column."""
        angles = (patch_positions[..., None].float() * self.frequencies(patch_positions.device)).flatten(1)
        cosines, sines = angles.cos(), angles.sin()
        return torch.cat([cosines, cosines], dim=-1), torch.cat([-sines, sines], dim=-1)


def turned(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Queries and keys turned by their positions in float32: x * cos + (second half, first half of x) * sin.

    All heads at once and the sign in the table: a third of the operators of transformers' function.

    Args:
        heads: (P, n, heads, d).
        cosines: (P, d).
        sines: (P, d), negative in the first half.

    Returns:
        As `heads`.
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
