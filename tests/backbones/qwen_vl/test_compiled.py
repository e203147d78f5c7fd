"""Compiled norms and activations give the same hidden states and gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.rig.comparing import assert_close_relative
from tests.rig.qwen_calls import ROWS, made_call
from tests.rig.qwen_models import MODELS, loaded
from vlm2vec.backbones.qwen_vl.modeling import QwenVLModel
from vlm2vec.compiling import compile_layers

# Two norms, attention and MLP in a decoder layer, two norms and attention in a tower layer; the last norm and the
# merger's. Besides, Qwen2-VL's tower has an activation in each of its 3 layers, Qwen2.5-VL's an MLP; Qwen3-VL has norms
# of queries and keys, and of the three deepstack mergers.
NUM_COMPILED = {"qwen2_vl": 4 * 4 + 3 * 3 + 2 + 3, "qwen2_5_vl": 4 * 4 + 4 * 4 + 2, "qwen3_vl": 6 * 4 + 3 * 4 + 2 + 3}


def states_and_gradients(model: QwenVLModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    call = made_call(model.config, ROWS[:2])
    hidden = model(**call)
    hidden[call["attention_mask"] == 1].square().sum().backward()
    return hidden.detach(), {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("family", MODELS)
def test_compiled_layers_give_the_same(family: str) -> None:
    plain = loaded(family).train()
    compiled = copy.deepcopy(plain)
    assert compile_layers(compiled, "aot_eager") == NUM_COMPILED[family]
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    (states, gradients), (expected, of_plain) = states_and_gradients(compiled), states_and_gradients(plain)
    assert_close_relative(states, expected, 1e-5)
    assert gradients.keys() == of_plain.keys()
    for name, gradient in gradients.items():
        assert_close_relative(gradient, of_plain[name], 1e-4)
