"""Compares an exported folder with the checkpoint that it came from: by what both make of a few items."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from transformers.initialization import no_init_weights

from vlm2vec.backbones.checkpoint import Shape, checkpoint_shapes
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.export.base import BaseModel
from vlm2vec.export.exported import Exported
from vlm2vec.export.zero_state import BACKBONE, module_state
from vlm2vec.model_folder.adapter_files import read_adapter_config
from vlm2vec.model_folder.loading import load_processor
from vlm2vec.model_folder.settings import ModelSettings
from vlm2vec.training.checkpoints.writer import ENCODER_FOLDER, ENGINE_TAG, RunRecord

LIMIT = 1e-6
_TEXTS = ["a", "A cat and a dog", "Represent the given question: what is in the picture? " * 8]


@dataclass(frozen=True)
class CheckResult:
    """How a folder compares with its checkpoint.

    Attributes:
        difference: Largest difference between numbers of the two sides' embeddings.
        num_items: Items that were embedded.
        is_rounded: Both sides' weights were rounded to bfloat16 before.
        cosine: The smallest between embeddings with weights as the checkpoint has them and as the folder has them.
        names: What is known of names and shapes.
    """

    difference: float
    num_items: int
    is_rounded: bool
    cosine: float
    names: str

    def __str__(self) -> str:
        rounded = " with weights rounded to bfloat16 on both sides" if self.is_rounded else ""
        return (
            f"checked: {self.num_items} items' embeddings from the checkpoint and from the folder differ by at most "
            f"{self.difference:.1e} (limit {LIMIT:.0e}){rounded}; smallest cosine to the unrounded weights' "
            f"{self.cosine:.6f}; {self.names}"
        )


def check_export(
    checkpoint: Path, record: RunRecord, folder: Path, exported: Exported, base: BaseModel | None
) -> CheckResult:
    """Embeds texts and a generated image twice, in float32.

    The checkpoint's side does not use what this package reads checkpoints with: under ZeRO-1/2 it takes the module's
    own weights, under ZeRO-3 DeepSpeed's converter. Weights of a bfloat16 run, or written as bfloat16, are compared
    after rounding them to it. Needs memory for two models in float32.

    Args:
        checkpoint: The checkpoint.
        record: Its record.
        folder: What was written.
        exported: What that is.
        base: The base model; needed for adapters.

    Raises:
        InputError: They differ.
    """
    names = _compare_names(folder, exported, base)
    expected_encoder = _from_checkpoint(checkpoint, exported, base, ModelSettings.read(folder))
    adapter = folder if exported.is_adapter else None
    found_encoder = VLM2Vec.from_pretrained(
        base.folder if exported.is_adapter and base is not None else folder,
        adapter,
        dtype=torch.float32,
        device="cpu",
    )
    unrounded = _encode(expected_encoder)
    is_rounded = not exported.is_adapter and (bool(record.arguments["bf16"]) or exported.dtype == torch.bfloat16)
    found = _encode(found_encoder)
    cosine = float(torch.nn.functional.cosine_similarity(unrounded, found).min())
    if is_rounded:
        for encoder in (expected_encoder, found_encoder):
            for parameter in encoder.parameters():
                parameter.data = parameter.data.bfloat16().float()
        unrounded, found = _encode(expected_encoder), _encode(found_encoder)
    difference = float((unrounded - found).abs().max())
    result = CheckResult(difference, len(found), is_rounded, cosine, names)
    if not difference <= LIMIT:  # also where it is not a number
        raise InputError(f"{checkpoint}: not exported, the folder does not give the checkpoint's embeddings; {result}")
    return result


def _encode(encoder: VLM2Vec) -> torch.Tensor:
    ramp = torch.arange(96 * 64 * 3, dtype=torch.int64).reshape(64, 96, 3)
    image = Image.fromarray((ramp * 37 % 256).to(torch.uint8).numpy())
    texts = [*_TEXTS, None, "<|image_1|> Represent the given image with the following question: What is in the image"]
    return encoder.encode(texts=texts, images=[None] * len(_TEXTS) + [image, image], show_progress=False)


def _from_checkpoint(checkpoint: Path, exported: Exported, base: BaseModel | None, settings: ModelSettings) -> VLM2Vec:
    """The checkpoint's encoder, used with the settings that were written: they are not what is compared."""
    state = module_state(checkpoint / ENGINE_TAG)
    state = {name.removeprefix(BACKBONE): tensor.float() for name, tensor in state.items()}
    configuration, adapter = checkpoint / ENCODER_FOLDER, None
    if not any(".lora_" in name for name in state):
        model = exported.family.backbone
        found = {model.published_name(name): tuple(each.shape) for name, each in state.items()}
        with no_init_weights():
            backbone = model(model.load_config(configuration, found))
        backbone.load_state_dict(state)
        backbone, model_folder = backbone.float(), configuration
    else:
        if base is None:
            raise InputError("--check: an adapter's embeddings need its base model; say where it is with --base_model")
        backbone, model_folder, adapter = _adapted(checkpoint, state, base), base.folder, configuration
    processor = load_processor(model_folder, adapter, settings.prompt_format, settings.image_limits)
    encoder = VLM2Vec(backbone, processor, settings.max_len, settings.normalize)
    if not exported.is_adapter:
        encoder.merge_lora()
    return encoder.eval()


def _adapted(checkpoint: Path, state: Mapping[str, torch.Tensor], base: BaseModel) -> PeftModel:
    """The base with a checkpoint's adapter.

    Raises:
        InputError: The adapter does not fit.
    """
    settings = read_adapter_config(checkpoint / ENCODER_FOLDER, base.family.backbone)
    settings.base_model_name_or_path = str(base.folder)  # PEFT warns if it is another than it finds
    adapted = get_peft_model(base.family.backbone.from_pretrained(base.folder, dtype=torch.float32), settings)
    strangers = adapted.load_state_dict(state, strict=False).unexpected_keys
    if strangers:
        raise InputError(f"{checkpoint}: the base has no place for {len(strangers)} tensors, first {strangers[0]}")
    return adapted


def _compare_names(folder: Path, exported: Exported, base: BaseModel | None) -> str:
    """Names and shapes of the written model against its base's, each set as one hash.

    Raises:
        InputError: They differ.
    """
    if exported.is_adapter:
        return "every tensor of the adapter has its place in the base"  # else loading it was refused
    if base is None:
        return "names and shapes are the model's own; the base is not at hand to compare with"
    names = exported.family.backbone.tensor_names
    found, expected = (names.published(checkpoint_shapes(each)) for each in (folder, base.folder))
    for shapes in (found, expected):
        for alias in names.aliases:
            shapes.pop(alias, None)
        if not exported.has_lm_head:
            shapes.pop(names.head, None)
    mine, bases = names_digest(found), names_digest(expected)
    if mine != bases:
        odd = min(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise InputError(
            f"{base.folder}: not the base of this checkpoint: {odd} is {found.get(odd)} here, {expected.get(odd)} there"
        )
    return f"{len(found)} tensors, names and shapes as the base's (sha256 {mine[:16]})"


def names_digest(shapes: Mapping[str, Shape]) -> str:
    """One hash over tensors' names and shapes, whatever their order."""
    lines = [f"{name} {list(shape)}\n" for name, shape in sorted(shapes.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
