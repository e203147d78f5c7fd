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
    """FLOPs of one forward and backward pass over items: polynomials in tokens and in vision units.

    Recomputation, second forward passes and padding are not counted; gradients of frozen weights are not either.

    Attributes:
        per_token: Linear layers.
        per_squared_token: Attention.
        per_vision_unit: Vision tower and projection.
        peak_flops: FLOP/s of a device.
        per_squared_vision_unit: The vision tower's attention, where it joins the units of an image.
    """

    per_token: float
    per_squared_token: float
    per_vision_unit: float
    peak_flops: float
    per_squared_vision_unit: float = 0.0

    def of(self, tokens: float, squared_tokens: float, vision_units: float, squared_vision_units: float = 0.0) -> float:
        """FLOPs of items.

        Args:
            tokens, squared_tokens: Sums over the items.
            vision_units, squared_vision_units: Sums over their images.
        """
        of_rows = self.per_token * tokens + self.per_squared_token * squared_tokens
        of_images = self.per_vision_unit * vision_units + self.per_squared_vision_unit * squared_vision_units
        return of_rows + of_images


def known_peak_tflops(device: torch.device) -> float | None:
    """The device's TFLOP/s in bfloat16; None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops for part, tflops in PEAK_TFLOPS.items() if part in name), None)
