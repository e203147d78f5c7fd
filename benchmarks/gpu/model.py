"""The model that is measured, with random weights, and batches for it in the host's memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.cached_step import laid_out
from benchmarks.gpu.items import RandomItems
from benchmarks.gpu.rows import LeftOutError
from benchmarks.workloads import NUM_CROPS, VOCABULARY, MakeItem, mmeb_pairs, phi3_v_items
from trials.rig.tiny import processed_inputs, tiny_config
from vlm2vec.backbones.interface import Backbone, ItemProcessor
from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VImageProcessor
from vlm2vec.backbones.registry import family_named, model_types, published_config
from vlm2vec.batches import ChunkSizes
from vlm2vec.contrastive import Phase, StepChunks, StepLayout
from vlm2vec.encoder import VLM2Vec
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.packing import TokenBudget
from vlm2vec.training.encoder import prepare_encoder
from vlm2vec.training.flags.engine_file import read_engine_file
from vlm2vec.training.flags.run import RunSettings, parse_arguments
from vlm2vec.training.settings import EncoderSettings

PHI3_V = "phi3_v"
# The published models whose sizes are measured.
MODELS = {
    PHI3_V: "microsoft/Phi-3.5-vision-instruct",
    "qwen2_vl": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen3_vl": "Qwen/Qwen3-VL-2B-Instruct",
}
# Configurations of the tests' models, one folder per family.
_TINY_CONFIGS = Path(__file__).resolve().parents[2] / "tests" / "data" / "golden"
# A tiny model's chunks have this share of the tokens.
TINY_SHARE = 32
_NEEDED = "--model_name - --dataset_name - --output_dir - --max_steps 1000"


@dataclass(frozen=True)
class Model:
    """The measured model.

    Attributes:
        family: The model family's name.
        tiny: Whether it has a few thousand weights instead of the published size.
    """

    family: str
    tiny: bool

    @cached_property
    def backbone(self) -> type[Backbone]:
        """The family's backbone class.

        Raises:
            LeftOutError: There is no such family.
        """
        if self.family not in model_types():
            raise LeftOutError(f"no model family {self.family}")
        return family_named(self.family, "benchmarks.gpu").backbone

    @cached_property
    def config(self) -> Any:
        """The configuration of the published size, or of the tiny model."""
        if self.family == PHI3_V:
            attention: dict[str, Any] = {"attn_implementation": "sdpa"}
            return tiny_config(vocab_size=VOCABULARY, **attention) if self.tiny else Phi3VConfig(**attention)
        folder = _TINY_CONFIGS / self.family / "model" if self.tiny else published_config(MODELS[self.family])
        config = self.backbone.load_config(folder, {})
        config._attn_implementation = "sdpa"
        return config

    @cached_property
    def processor(self) -> ItemProcessor:
        """The family's processor, for estimates and items."""
        limits = {"num_crops": NUM_CROPS} if self.family == PHI3_V else {}
        return family_named(self.family, "benchmarks.gpu").processor.without_tokenizer(self.config, None, **limits)

    def inputs(self, dtype: torch.dtype = torch.bfloat16) -> ItemEncoderInputs:
        """Makes chunks of items."""
        if self.family == PHI3_V:
            return processed_inputs(dtype)
        return ItemEncoderInputs(self.processor, None, dtype)

    def items(self) -> MakeItem:
        """Makes items; the pixels of images take no time to create."""
        if self.family != PHI3_V:
            vocab_size = self.config.get_text_config().vocab_size
            return RandomItems(self.processor, min(vocab_size, getattr(self.config, "image_token_id", vocab_size)))
        vision = self.config.vision_config
        images = Phi3VImageProcessor(NUM_CROPS, vision.image_size, vision.patch_size)
        bank = torch.randn(NUM_CROPS + 1, 3, images.crop_size, images.crop_size, dtype=torch.bfloat16)
        return phi3_v_items(images, lambda shape: bank[: shape[0]])


def run_settings(flags: str, pairs: int, tiny: bool, engine: str = "zero2") -> RunSettings:
    """The settings of a run from flags of vlm2vec.train, with smaller chunks for a tiny model."""
    needed = f"{_NEEDED} --deepspeed ds_configs/{engine}.json --global_batch_size {pairs}"
    arguments = parse_arguments(f"{needed} {flags}".split())
    settings = arguments.resolve(1, read_engine_file(Path(arguments.training.deepspeed)))
    packing = settings.chunking.packing
    assert isinstance(packing, TokenBudget)
    if tiny:
        packing = replace(packing, chunk_tokens=packing.chunk_tokens // TINY_SHARE)
    return replace(settings, chunking=replace(settings.chunking, packing=packing))


def build_encoder(model: Model, settings: EncoderSettings, device: torch.device) -> VLM2Vec:
    """Builds the encoder in training mode as a run does, with random weights drawn on the device."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            backbone = model.backbone(model.config)
    finally:
        torch.set_default_dtype(before)
    encoder = VLM2Vec(backbone, processor=None, max_len=None)  # type: ignore[arg-type]
    encoder = prepare_encoder(encoder, settings, settings.gradient_checkpointing)
    return encoder.to(device)


@dataclass(frozen=True)
class Batch:
    """A global batch on one rank.

    Attributes:
        chunks: The chunks in host memory, page-locked on a machine with a GPU.
        layout: The layout of their items.
        num_pairs: Number of rows.
        lengths: Number of tokens of each distinct item.
        vision_units: Number of vision units of each image.
    """

    chunks: StepChunks
    layout: StepLayout
    num_pairs: int
    lengths: tuple[int, ...]
    vision_units: tuple[int, ...]


def make_batch(model: Model, pairs: int, sizes: ChunkSizes, device: torch.device) -> Batch:
    """Makes a batch of items with MMEB's mix of lengths."""
    items, (batch,) = mmeb_pairs(pairs, 1, model.items())
    chunks, layout = laid_out(batch, items, sizes, model.inputs())
    if device.type != "cpu":
        chunks = StepChunks(*(_pinned(phase) for phase in chunks.phases))
    used = [items[number] for number in {item for pair in batch for item in pair}]
    return Batch(
        chunks,
        layout,
        len(batch),
        tuple(len(item.input_ids) for item in used),
        tuple(item.vision_units for item in used if item.has_image),
    )


def _pinned(phase: Phase) -> Phase:
    """Moves chunks to page-locked memory, as a run's loader does."""
    return Phase([chunk.pin_memory() for chunk in phase.chunks], phase.num_chunks, phase.num_image_chunks)
