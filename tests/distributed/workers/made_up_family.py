"""One rank: gradients of the made-up family, then runs of the training program with it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from tests.rig.made_up_family import PIXELS, MadeUpProcessor, made_up_model
from trials.exactness import relative_error
from trials.exactness_grid import BATCHES, CHUNKS
from trials.exactness_reference import padding_chunk, rank_batch, textbook_gradient
from trials.rig.engines import build_engine
from trials.rig.items import Items
from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec.backbones.interface import ProcessedItem
from vlm2vec.choices import LoraSettings
from vlm2vec.contrastive import CachedStep, ContrastiveLoss
from vlm2vec.encoder import VLM2Vec
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.train import run
from vlm2vec.training.flags.run import parse_arguments

PROCESSOR = MadeUpProcessor(8 * PIXELS // 3)
TEMPERATURE = 0.3  # so that rounding errors of vectors stay below 1e-6 in the gradient
# Kinds of batches, each in one size of chunks.
GRADIENTS = {
    "mixed": "ragged",
    "text only on some ranks": "one item",
    "images on one rank only": "whole batch",
    "a rank without items": "ragged",
}


def item(seed: int, has_image: bool) -> ProcessedItem:
    """Of a text of its own length, and an image of its own height."""
    generator = np.random.default_rng(seed)
    text = f"{seed} " * int(generator.integers(1, 6))
    if not has_image:
        return PROCESSOR.process_item(text)
    pixels = generator.integers(0, 256, (int(generator.integers(10, 90)), 40, 3), dtype=np.uint8)
    return PROCESSOR.process_item(f"<|image_1|> {text}", [Image.fromarray(pixels)])


ITEMS = Items(ItemEncoderInputs(PROCESSOR, None), item)


def made_up_encoder(lora: bool) -> VLM2Vec:
    """Adapters get a B that is not zero, which would hide half of the gradient."""
    encoder = VLM2Vec(made_up_model(), PROCESSOR, max_len=None)
    if lora:
        encoder.add_lora(LoraSettings(r=4, alpha=4, dropout=0.0, use_dora=False))
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    return encoder.train()


def gradient_errors(stage: int, lora: bool) -> Iterator[tuple[str, float]]:
    """By kind of batch, of the cached step on the ranks against one graph."""
    encoder = made_up_encoder(lora)
    reference = copy.deepcopy(encoder)
    engine = build_engine(encoder, stage)
    for name, chunks in GRADIENTS.items():
        batch = rank_batch(BATCHES[name], CHUNKS[chunks], dist.get_rank(), dist.get_world_size(), ITEMS)
        expected = textbook_gradient(reference, batch, ITEMS, TEMPERATURE)
        step = CachedStep(engine, ContrastiveLoss(TEMPERATURE, block_rows=3), padding_chunk(ITEMS))
        step.cache_step(batch.chunks, batch.layout)
        yield name, relative_error(engine, expected)
        engine.step()
    engine.destroy()


def main(jobs: Path, output: Path) -> None:
    """For each ZeRO stage its gradients, then its runs; `jobs` has the runs' flags by stage.

    ZeRO-3 comes last: its engine replaces torch.nn.functional.linear for the rest of the process.
    """
    device = initialize_ranks(COLLECTIVE_SECONDS)
    errors: dict[str, float] = {}
    for stage, runs in json.loads(jobs.read_text()).items():
        for lora in (False, True):
            for name, error in gradient_errors(int(stage), lora):
                errors[f"ZeRO-{stage}{', LoRA' if lora else ''}, {name}"] = error
        for flags in runs:
            print(*flags, flush=True)
            run(parse_arguments(flags), device)
    if dist.get_rank() == 0:
        output.write_text(json.dumps(errors))
    close_ranks()
