"""The model that is measured, with random weights, and batches for it in the host's memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cached_step import laid_out
from benchmarks.workloads import NUM_CROPS, VOCABULARY, mmeb_pairs
from trials.rig.tiny import processed_inputs, tiny_config
from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VImageProcessor, Phi3VModel
from vlm2vec.batches import ChunkSizes
from vlm2vec.contrastive import Phase, StepChunks, StepLayout
from vlm2vec.encoder import VLM2Vec
from vlm2vec.inputs.packing import TokenBudget
from vlm2vec.training.encoder import prepare_encoder
from vlm2vec.training.flags.engine_file import read_engine_file
from vlm2vec.training.flags.run import RunSettings, parse_arguments
from vlm2vec.training.settings import EncoderSettings

# A tiny model's chunks hold this share of the tokens.
TINY_SHARE = 32
_NEEDED = "--model_name - --dataset_name - --output_dir - --max_steps 1000"


def model_config(tiny: bool) -> Phi3VConfig:
    """Phi-3.5-V, or the same in small."""
    attention: dict[str, Any] = {"attn_implementation": "sdpa"}
    return tiny_config(vocab_size=VOCABULARY, **attention) if tiny else Phi3VConfig(**attention)


def run_settings(flags: str, pairs: int, tiny: bool, engine: str = "zero2") -> RunSettings:
    """A run's settings from flags of vlm2vec.train; a tiny model's chunks are smaller."""
    needed = f"{_NEEDED} --deepspeed ds_configs/{engine}.json --global_batch_size {pairs}"
    arguments = parse_arguments(f"{needed} {flags}".split())
    settings = arguments.resolve(1, read_engine_file(Path(arguments.training.deepspeed)))
    packing = settings.chunking.packing
    assert isinstance(packing, TokenBudget)
    if tiny:
        packing = replace(packing, chunk_tokens=packing.chunk_tokens // TINY_SHARE)
    return replace(settings, chunking=replace(settings.chunking, packing=packing))


def build_encoder(settings: EncoderSettings, device: torch.device, tiny: bool) -> VLM2Vec:
    """In training mode, as a run prepares it; the weights are drawn on the device."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            backbone = Phi3VModel(model_config(tiny))
    finally:
        torch.set_default_dtype(before)
    encoder = VLM2Vec(backbone, processor=None, max_len=None)  # type: ignore[arg-type]
    encoder = prepare_encoder(encoder, settings, settings.gradient_checkpointing)
    return encoder.to(device)


@dataclass(frozen=True)
class Batch:
    """A global batch on one rank.

    Attributes:
        chunks: In the host's memory, page-locked on a machine with a GPU.
        layout: Where their items belong.
        num_pairs: Rows.
        lengths: Tokens of each distinct item.
        num_crops: Crops of all items.
    """

    chunks: StepChunks
    layout: StepLayout
    num_pairs: int
    lengths: tuple[int, ...]
    num_crops: int


def make_batch(config: Phi3VConfig, pairs: int, sizes: ChunkSizes, device: torch.device) -> Batch:
    """Items with MMEB's mix of lengths; one set of crops serves all images, whose content costs nothing."""
    images = Phi3VImageProcessor(NUM_CROPS, config.vision_config.image_size, config.vision_config.patch_size)
    bank = torch.randn(NUM_CROPS + 1, 3, images.crop_size, images.crop_size, dtype=torch.bfloat16)
    items, (batch,) = mmeb_pairs(pairs, 1, images, lambda shape: bank[: shape[0]])
    inputs = processed_inputs(torch.bfloat16)
    chunks, layout = laid_out(batch, items, sizes, inputs)
    if device.type != "cpu":
        chunks = StepChunks(*(_pinned(phase) for phase in chunks.phases))
    used = [items[number] for number in {item for pair in batch for item in pair}]
    return Batch(
        chunks,
        layout,
        len(batch),
        tuple(len(item.input_ids) for item in used),
        sum(item.vision_units for item in used),
    )


def _pinned(phase: Phase) -> Phase:
    """With chunks in page-locked memory, as a run's loader leaves them."""
    return Phase([chunk.pin_memory() for chunk in phase.chunks], phase.num_chunks, phase.num_image_chunks)
