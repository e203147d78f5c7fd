"""MFU: the model's FLOPs of what a run encodes, without what it computes twice, over the devices' peak."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# TFLOP/s in bfloat16 with dense matrices, by a part of the device's name: NVIDIA's data sheets. The first that fits
# counts. GPUs without bfloat16 matrix units are left out.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.0,
}


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs of one forward and backward pass over items: a polynomial in tokens, plus the vision tower's a vision unit.

    Recomputation, second forward passes and padding are not counted; gradients of frozen weights are not either.

    Attributes:
        per_token: Linear layers.
        per_squared_token: Attention.
        per_vision_unit: Vision tower and projection.
        peak_flops: FLOP/s of a device.
    """

    per_token: float
    per_squared_token: float
    per_vision_unit: float
    peak_flops: float

    def of(self, tokens: float, squared_tokens: float, vision_units: float) -> float:
        """FLOPs of items, from the sums over them of tokens, squared tokens and vision units."""
        of_rows = self.per_token * tokens + self.per_squared_token * squared_tokens
        return of_rows + self.per_vision_unit * vision_units


def known_peak_tflops(device: torch.device) -> float | None:
    """The device's TFLOP/s in bfloat16; None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops for part, tflops in PEAK_TFLOPS.items() if part in name), None)
