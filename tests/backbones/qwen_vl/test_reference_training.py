"""Training compared with the reference: gradients of every parameter, and a few AdamW steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from tests.rig import golden, qwen_golden
from tests.rig.qwen_calls import Call
from tests.rig.qwen_items import FORMATS, items_of
from tests.rig.qwen_models import MODELS, loaded
from vlm2vec.backbones.qwen_vl.modeling import QwenVLModel
from vlm2vec.backbones.registry import family_named

pytestmark = pytest.mark.numeric

ADAMW_LIMIT = 1e-3  # as the reference's README suggests
families = pytest.mark.parametrize("family", MODELS)


def calls(family: str) -> list[Call]:
    """Queries and targets of the reference's training data."""
    kind, training = family_named(family, "test"), qwen_golden.read(family, "train/train.json")
    processor = kind.processor.from_pretrained(qwen_golden.model_folder(family), kind.prompt_format(FORMATS[family]))
    made = []
    for side in ("query", "target"):
        items = [
            processor.process_item(
                *(item.text or "", [Image.open(file) for file in item.images]), instruction=item.instruction
            )
            for item in items_of(family, training[side])
        ]
        units = sum(item.vision_units for item in items)
        collated = processor.collate(items, units, torch.float32)
        made.append({**collated.tensors, **collated.host_values})
    return made


def embed(model: QwenVLModel, call: Call) -> torch.Tensor:
    hidden = model(**call)
    pooled = hidden[torch.arange(len(hidden)), call["attention_mask"].sum(1) - 1]
    return nn.functional.normalize(pooled, dim=-1)


def contrastive_loss(model: QwenVLModel, sides: list[Call], temperature: float) -> torch.Tensor:
    queries, targets = (embed(model, call) for call in sides)
    scores = queries @ targets.T / temperature
    return nn.functional.cross_entropy(scores, torch.arange(len(scores)))


@families
@pytest.mark.parametrize(("implementation", "checkpointing"), [("sdpa", False), ("sdpa", True), ("eager", False)])
@qwen_golden.RESIZED
def test_gradients(family: str, implementation: str, checkpointing: bool) -> None:
    model, training = loaded(family, implementation).train(), qwen_golden.read(family, "train/train.json")
    expected = qwen_golden.tensors(family, "train/gradients.safetensors")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    sides = calls(family)
    with torch.no_grad():
        for side, call in zip(("query", "target"), sides, strict=True):
            difference = embed(model, call) - expected[f"{side}_embeddings"]
            assert difference.abs().max() < golden.EMBEDDING_LIMIT
    loss = contrastive_loss(model, sides, training["temperature"])
    loss.backward()
    assert abs(loss.item() - training["loss"]) < golden.LOSS_LIMIT
    gradients: dict[str, Any] = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == training["grad_norms"].keys() - {"lm_head.weight"}
    for name, gradient in gradients.items():
        norm = training["grad_norms"][name]
        assert gradient.norm().item() == pytest.approx(norm, rel=golden.GRADIENT_LIMIT), name
        reference = expected.get(f"grad.{name}")
        if reference is not None:
            assert (gradient - reference).abs().max() < golden.GRADIENT_LIMIT * reference.abs().max(), name


@families
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@qwen_golden.RESIZED
def test_four_steps_of_adamw(family: str, implementation: str) -> None:
    model, training = loaded(family, implementation).train(), qwen_golden.read(family, "train/train.json")
    settings = {name: training["adamw"][name] for name in ("lr", "betas", "eps", "weight_decay")}
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    sides, losses = calls(family), training["adamw"]["losses_before_each_step_and_after_the_last"]
    assert len(losses) == 5
    for expected in losses:
        loss = contrastive_loss(model, sides, training["temperature"])
        assert abs(loss.item() - expected) < ADAMW_LIMIT
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
