"""Upper limits of the device: matrix products of the model's sizes, attention, copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.gpu.rows import Figures, Recorder, Section

SECTION = Section("Ceilings", ("reached",), lambda figures: [f"{figures['value']:,.4g} {figures['unit']}"])
# Ten images with all their crops.
_ROWS, _WIDTH, _TINY_WIDTH = 7570, 757, 16
# (inputs, outputs) of the decoder's linear layers, and CLIP's first.
_LINEARS = ((3072, 9216), (3072, 3072), (3072, 16384), (8192, 3072), (1024, 4096))
_SQUARE = 8192
_COPIED_BYTES = 2**31


def run(recorder: Recorder, device: torch.device, tiny: bool) -> None:
    """One row per upper limit."""
    share = 64 if tiny else 1
    recorder.begin(SECTION)
    side = _SQUARE // share

    def product(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> Figures:
        x = torch.randn(rows, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        seconds = seconds_of(lambda: F.linear(x, weight), device)
        return {"value": 2 * rows * inputs * outputs / seconds / 1e12, "unit": "TFLOP/s"}

    recorder.row(f"bfloat16, {side}^3", lambda: product(side, side, side, torch.bfloat16))
    for inputs, outputs in _LINEARS:
        rows, inputs, outputs = (each // share for each in (_ROWS, inputs, outputs))
        what = f"bfloat16, ({rows}, {inputs}) to {outputs}"
        recorder.row(what, partial(product, rows, inputs, outputs, torch.bfloat16))
    inputs, outputs = (each // share for each in _LINEARS[0])
    what = f"float32 without TF32, ({_ROWS // share}, {inputs}) to {outputs}"
    recorder.row(what, lambda: product(_ROWS // share, inputs, outputs, torch.float32))

    width = _TINY_WIDTH if tiny else _WIDTH

    def attention() -> Figures:
        made = [torch.randn(10, width, 32, 96, device=device, dtype=torch.bfloat16) for _ in range(3)]
        query, key, value = (each.transpose(1, 2).requires_grad_() for each in made)

        def both_ways() -> None:
            F.scaled_dot_product_attention(query, key, value, is_causal=True).sum().backward()

        flops = 3.5 * 2 * 2 * 10 * 32 * width**2 * 96 / 2  # forward and 2.5 times as much backward, half of it masked
        return {"value": flops / seconds_of(both_ways, device) / 1e12, "unit": "TFLOP/s"}

    recorder.row(f"attention of the decoder, 10 x {width}, forward and backward", attention)

    def copy() -> Figures:
        source = torch.empty(_COPIED_BYTES // share**2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        seconds = seconds_of(lambda: target.copy_(source), device)
        return {"value": 2 * source.numel() / seconds / 1e9, "unit": "GB/s read and written"}

    recorder.row("copy on the device", copy)


def seconds_of(call: Callable[[], object], device: torch.device, calls: int = 10) -> float:
    """Seconds of one call, after two warm-up calls."""
    for _ in range(2):
        call()
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
