"""The benchmark of DoRA against PEFT: what it counts, and that both sides run what they claim."""

from __future__ import annotations

import pytest
import torch

from benchmarks import dora
from benchmarks.gpu.model import PHI3_V, Model
from benchmarks.operators import OperatorCosts
from benchmarks.workloads import NUM_CROPS
from vlm2vec.backbones.phi3_v import Phi3VModel, Phi3VProcessor
from vlm2vec.dora import DoraLinear
from vlm2vec.encoder import VLM2Vec
from vlm2vec.plan.meta import MetaModel
from vlm2vec.plan.passes import ChunkShape


def test_costs_of_operators_are_their_products_and_the_sizes_of_their_tensors() -> None:
    with OperatorCosts() as costs:
        x, weight = torch.empty(5, 7, device="meta"), torch.empty(7, 3, device="meta")
        y = x @ weight
        y.view(15).t()
        y + torch.zeros(1, device="meta").expand(5, 3)
    assert costs.flops == 2 * 5 * 7 * 3
    assert costs.bytes_moved == 4 * ((35 + 21 + 15) + 1 + (15 + 1 + 15))


def test_layers_are_peft_s_or_this_code_s() -> None:
    encoder = VLM2Vec(Phi3VModel(Model(PHI3_V, tiny=True).config), processor=None, max_len=None)  # type: ignore[arg-type]
    found = {
        layers: sum(isinstance(each, DoraLinear) for each in dora.adapted(encoder, 0.1, layers).modules())
        for layers in dora.LAYERS
    }
    assert found[dora.OURS] > 0
    assert found[dora.PEFT] == found[dora.PLAIN] == 0


def test_a_chunk_moves_fewer_bytes_and_norms_are_computed_in_the_first_call() -> None:
    config, shape = Model(PHI3_V, tiny=True).config, ChunkShape(2, 40, ((28, 28),))
    peft = dora.chunk_costs(dora.DROPOUTS["input"], True, config, shape)
    ours = dora.chunk_costs(dora.DROPOUTS["input"], False, config, shape)
    adapter = dora.chunk_costs(dora.DROPOUTS["adapter"], False, config, shape)
    assert peft[0].flops == peft[1].flops
    assert peft[0].bytes_moved == pytest.approx(peft[1].bytes_moved, rel=1e-3)
    assert peft[1].bytes_moved > ours[0].bytes_moved > ours[1].bytes_moved > adapter[1].bytes_moved
    assert ours[0].flops > ours[1].flops > 1.3 * adapter[1].flops


def test_costs_are_carried_on_to_all_layers() -> None:
    config, shape = Model(PHI3_V, tiny=True).config, ChunkShape(2, 40, ((28, 28),))
    config.num_hidden_layers = config.vision_config.num_hidden_layers = 4
    model = MetaModel(config, dora.encoder_settings(), Phi3VProcessor.without_tokenizer(config, num_crops=NUM_CROPS))
    whole = dora._two_calls(model.encoder((4, 4)), shape)[1]
    carried_on = dora.chunk_costs("--lora_r 16", False, config, shape)[1]
    assert (carried_on.flops, carried_on.bytes_moved) == pytest.approx((whole.flops, whole.bytes_moved))
