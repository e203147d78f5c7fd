"""Models with fewer layers, and models without weights, as estimates build them."""

from __future__ import annotations

import json

import pytest
import torch

from tests.rig.golden import ROOT
from tests.rig.qwen_calls import ROWS, made_call
from tests.rig.qwen_models import MODELS, loaded

families = pytest.mark.parametrize("family", MODELS)


@families
def test_other_depths(family: str) -> None:
    """No parameter of a shallow model is left without a use."""
    kind, config = MODELS[family], loaded(family).config
    decoder, vision = kind.depths(config)
    assert kind.with_depths(config, decoder, vision).to_dict() == config.to_dict()
    few = kind.with_depths(config, *kind.fewest_depths)
    assert kind.depths(few) == kind.fewest_depths
    model = kind(few).train()
    assert len(model.decoder.layers) == kind.fewest_depths[0]
    model(**made_call(few, [ROWS[0]])).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("full", "depth", "units", "shallow"),
    [
        ([7, 15, 23, 31], 32, 4, [7, 15]),  # eight blocks are a unit that repeats
        ([1, 4], 32, 32, [1]),  # irregular: blocks are taken as they come
        ([], 32, 32, []),
    ],
)
def test_windows_stay_in_proportion(full: list[int], depth: int, units: int, shallow: list[int]) -> None:
    published = json.loads((ROOT / "qwen2_5_vl_3b_full_size_shapes.json").read_text())["config"]
    kind = MODELS["qwen2_5_vl"]
    config = kind.config_class.from_dict(published)
    config.vision_config.fullatt_block_indexes = full
    assert kind.depths(config) == (36, units)
    few = kind.with_depths(config, 1, 2)
    assert list(few.vision_config.fullatt_block_indexes) == shallow
    assert few.vision_config.depth == 2 * depth // units


@families
def test_nothing_waits_for_the_device(family: str) -> None:
    """On the meta device, a value that Python asked for would raise."""
    config = loaded(family).config
    with torch.device("meta"):
        model = MODELS[family](config).train()
    call = made_call(config, ROWS)
    on_meta = {name: each.to("meta") if isinstance(each, torch.Tensor) else each for name, each in call.items()}
    hidden = model(**on_meta)
    assert hidden.shape == (*call["input_ids"].shape, model.hidden_size)
    hidden.sum().backward()
