"""Measurements that only some model families need: exactness with images, attention of the vision tower, host waits."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from unittest import mock

import torch
from torch import nn

from benchmarks.gpu.bench import Setting
from benchmarks.gpu.ceilings import seconds_of
from benchmarks.gpu.exactness import SECTION, summarize
from benchmarks.gpu.model import Model, make_batch
from benchmarks.gpu.rows import Figures, LeftOutError, Recorder, Section
from trials.exactness import relative_error
from trials.exactness_grid import BATCHES, CHUNKS, TEMPERATURE, Cell
from trials.exactness_reference import plain_gradient, rank_batch
from trials.rig.engines import build_engine
from trials.rig.items import Items
from vlm2vec.backbones.interface import ProcessedItem
from vlm2vec.batches import ChunkSizes
from vlm2vec.choices import LoraSettings
from vlm2vec.contrastive import CachedStep, ContrastiveLoss
from vlm2vec.device import choose_kernels
from vlm2vec.dora import kept_norms
from vlm2vec.encoder import VLM2Vec
from vlm2vec.inputs.packing import TokenBudget

# (ZeRO stage, trained parameters)
SETTINGS = ((2, "full"), (2, "dora"), (3, "full"))
# Width and height in pixels: images of several grids in one chunk.
_SIZES = ((112, 84), (56, 56), (84, 140))
_TOWER_TOKENS = 16_384
# Arguments of a chunk that the tower does not read.
_OF_THE_DECODER = ("input_ids", "attention_mask", "position_ids", "image_rows")

TOWER_SECTION = Section(
    "Vision tower, forward and backward",
    ("images", "sizes", "ms", "difference"),
    lambda figures: [
        str(figures["images"]),
        str(figures["sizes"]),
        f"{figures['milliseconds']:.1f}",
        "-" if figures["difference"] is None else f"{figures['difference']:.1e}",
    ],
)


WAITS_SECTION = Section("Waits of the host for the device", ("waits",), lambda figures: [str(figures["waits"])])


def run_exactness(recorder: Recorder, device: torch.device, family: str) -> None:
    """Compares the cached step of a tiny model with one plain graph, in float32, with images and texts."""
    recorder.begin(SECTION)
    choose_kernels(deterministic=False, is_float32=True)
    for stage, kind in SETTINGS:
        recorder.row(f"{family}, ZeRO-{stage}, {kind}", partial(_error, Model(family, tiny=True), stage, kind, device))


def run_waits(recorder: Recorder, device: torch.device, family: str) -> None:
    """Whether a forward or backward pass makes the host wait for the device, as torch reports it."""
    recorder.begin(WAITS_SECTION)
    recorder.row(f"{family}, forward and backward", partial(_waits, Model(family, tiny=True), device))


def _waits(model: Model, device: torch.device) -> Figures:
    if device.type != "cuda":
        raise LeftOutError("only on a GPU")
    torch.manual_seed(0)
    encoder = VLM2Vec(model.backbone(model.config), model.processor, None).train().to(device)
    make = model.items()
    items = [make(torch.arange(3, 9), size) for size in (*_SIZES, _SIZES[0], None)]
    arguments = model.inputs(torch.float32).chunk(items).arguments(device, dummy_image=True)
    encoder(**arguments).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        encoder(**arguments).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"waits": 0}


def _error(model: Model, stage: int, kind: str, device: torch.device) -> Figures:
    torch.manual_seed(0)
    encoder = VLM2Vec(model.backbone(model.config), model.processor, None)
    if kind == "dora":
        encoder.add_lora(LoraSettings(r=4, alpha=4, dropout=0.0))
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05)
    encoder.train().to(device)
    reference = copy.deepcopy(encoder)
    engine = build_engine(encoder, stage)
    make = model.items()

    def item(seed: int, has_image: bool) -> ProcessedItem:
        text = torch.arange(seed + 3, seed + 6 + seed % 5) % 50
        return make(text, _SIZES[seed % len(_SIZES)] if has_image else None)

    items = Items(model.inputs(torch.float32), item)
    padding = items.inputs.chunk([model.processor.blank_item(1)])
    step = CachedStep(engine, ContrastiveLoss(TEMPERATURE, block_rows=3), padding)
    cells = [Cell(stage, kind, 0.0, "mixed", chunks) for chunks in CHUNKS]
    errors = []
    for cell in cells:
        batch = rank_batch(BATCHES[cell.batch], CHUNKS[cell.chunks], 0, 1, items)
        expected = plain_gradient(reference, batch, 0)
        with kept_norms(engine):
            step.cache_step(batch.chunks, batch.layout)
        errors.append(relative_error(engine, expected))
        engine.step()
    engine.destroy()
    return summarize(cells, errors, device)


def run_tower(recorder: Recorder, setting: Setting) -> None:
    """Times one varlen attention call for all images of a chunk, and separate calls for groups of equal images."""
    recorder.begin(TOWER_SECTION)
    results: dict[str, torch.Tensor] = {}

    def measure(name: str, is_grouped: bool) -> Figures:
        from vlm2vec.backbones.qwen_vl import attention

        setting.model.config  # noqa: B018  (raises if there is no such family)
        if not is_grouped and (setting.device.type != "cuda" or attention._varlen_kernel() is None):
            raise LeftOutError("no such kernel here")
        with mock.patch.object(attention, "_varlen_kernel", return_value=None) if is_grouped else nullcontext():
            return _tower(setting, results, name)

    recorder.row("groups of images of one size", lambda: measure("grouped", True))
    recorder.row("one call for all images", lambda: measure("varlen", False))


def _tower(setting: Setting, results: dict[str, torch.Tensor], name: str) -> Figures:
    model, device = setting.model, setting.device
    torch.manual_seed(0)
    with torch.device(device):
        tower = model.backbone(model.config).to(torch.bfloat16).tower
    tokens = _TOWER_TOKENS // (32 if model.tiny else 1)
    batch = make_batch(model, setting.pairs, ChunkSizes(TokenBudget(tokens, max_shortfall=1.0)), device)
    chunk = next(chunk for chunk in batch.chunks.repeat.chunks if chunk.has_image)
    arguments = {name: value for name, value in chunk.arguments(device, False).items() if name not in _OF_THE_DECODER}

    def both_ways() -> torch.Tensor:
        features: torch.Tensor = tower(**arguments)[0]
        features.float().square().mean().backward()
        return features

    result = both_ways().detach().float()
    results[name] = result
    seconds = seconds_of(both_ways, device)
    lengths = arguments["image_lengths"]
    return {
        "images": len(lengths),
        "sizes": len(set(lengths)),
        "milliseconds": 1e3 * seconds,
        "difference": _difference(result, results.get("grouped")) if name != "grouped" else None,
    }


def _difference(found: torch.Tensor, expected: torch.Tensor | None) -> float | None:
    """The difference relative to the norm of the expected features."""
    return None if expected is None else float((found - expected).norm() / expected.norm())
