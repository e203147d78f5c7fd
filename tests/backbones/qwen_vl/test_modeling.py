"""The models compared with the reference: image features, hidden states, embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from tests.rig import golden, qwen_golden
from tests.rig.qwen_calls import Call, call_of
from tests.rig.qwen_models import MODELS, image_settings, loaded
from vlm2vec.backbones.qwen_vl.items.image_processor import QwenVLImageProcessor
from vlm2vec.backbones.qwen_vl.modeling import QwenVLModel

pytestmark = pytest.mark.numeric

CASES = [(family, case) for family in MODELS for case in qwen_golden.read(family, "model_cases/cases.json")["cases"]]


IMPLEMENTATIONS = ("sdpa", "eager")
# Eager attention writes down all scores: the largest images pass with it too, and are left out for their time, 5 s of a
# core for the three families (and 1.3 GiB).
RUNS = [
    pytest.param(family, implementation, case, id=f"{family}-{implementation}-{case['case']}")
    for family, case in CASES
    for implementation in IMPLEMENTATIONS
    if (implementation, case["case"]) != ("eager", "big")
]


@pytest.fixture(scope="module")
def models() -> dict[tuple[str, str], QwenVLModel]:
    made = {(family, kind): loaded(family, kind) for family in MODELS for kind in IMPLEMENTATIONS}
    for (_, kind), model in made.items():
        assert model.config.text_config._attn_implementation == kind
        assert model.config.vision_config._attn_implementation == kind
    return made


@cache
def pixels(family: str, name: str) -> torch.Tensor:
    return QwenVLImageProcessor(image_settings(family)).pixel_values(qwen_golden.image(family, name))


def image_names(case: dict[str, Any]) -> Iterator[str]:
    for row in case.get("images") or [item.get("image") for item in case["items"]]:
        yield from [row] if isinstance(row, str) else row or []


def call_of_case(model: QwenVLModel, family: str, case: dict[str, Any], expected: dict[str, torch.Tensor]) -> Call:
    images = [pixels(family, name) for name in image_names(case)]
    ids, mask, position_ids = (expected[name] for name in ("input_ids", "attention_mask", "position_ids"))
    return call_of(model.config, ids, mask, position_ids, images, expected.get("image_grid_thw"))


def pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(hidden[torch.arange(len(hidden)), mask.sum(1) - 1], dim=-1)


@pytest.mark.parametrize(("family", "implementation", "case"), RUNS)
@qwen_golden.RESIZED
def test_hidden_states(
    models: dict[tuple[str, str], QwenVLModel], family: str, implementation: str, case: dict[str, Any]
) -> None:
    model, expected = models[family, implementation], qwen_golden.tensors(family, case["file"])
    call = call_of_case(model, family, case, expected)
    entering: list[torch.Tensor] = []
    features: list[torch.Tensor] = []
    layers = model.decoder.layers
    hooks = [layer.register_forward_pre_hook(lambda _, args: entering.append(args[0])) for layer in layers]
    hooks += [layers[-1].register_forward_hook(lambda *args: entering.append(args[-1]))]
    hooks += [model.tower.register_forward_hook(lambda *args: features.extend(args[-1]))]
    with torch.no_grad():
        hidden = model(**call)
    for hook in hooks:
        hook.remove()
    # The reference may be padded on the left.
    shift = torch.where(expected["attention_mask"][:, 0] == 0, (expected["attention_mask"] == 0).sum(1), 0)
    at = expected["rows"], expected["positions"] - shift[expected["rows"]]
    assert (hidden[at] - expected["last_hidden_state"]).abs().max() < golden.HIDDEN_LIMIT
    assert (pool(hidden, call["attention_mask"]) - expected["embedding"]).abs().max() < golden.EMBEDDING_LIMIT
    for index, states in enumerate(entering):
        for name in (f"hidden_states.{index}", f"layer_inputs.{index}"):
            if name in expected:
                assert (states[at] - expected[name]).abs().max() < golden.HIDDEN_LIMIT, name
    names = ("image_features", *(f"deepstack_features.{index}" for index in range(3)))
    for name, tokens in zip(names, features, strict=False):
        if name in expected:
            in_rows = tokens[torch.argsort(call["image_rows"])][expected["image_features_rows"]]
            assert (in_rows - expected[name]).abs().max() < golden.HIDDEN_LIMIT, name
