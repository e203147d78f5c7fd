"""Compiled layers: the same results, gradients and dropout masks, with little code for many shapes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from trials.rig.tiny import processed_inputs, tiny_item, tiny_model
from vlm2vec.compiling import compile_layers
from vlm2vec.contrastive import Chunk
from vlm2vec.dora import kept_norms
from vlm2vec.encoder import VLM2Vec
from vlm2vec.lora import LoraSettings

# The code that autograd gets, run operator by operator: inductor's C++ compiler would take minutes.
BACKEND = "aot_eager"
TOLERANCE = 1e-6  # relative
# Decoder with and without a graph, tower without; and one or two again where a chunk has one row or one image.
MOST_GRAPHS = 5


def chunk_of(number: int) -> Chunk:
    """Chunks of different widths, rows and numbers of images."""
    items = [tiny_item(10 * number + row, row % 2 == number % 2) for row in range(2 + number % 3)]
    return processed_inputs().chunk(items)


def adapted_encoder() -> VLM2Vec:
    """DoRA with dropout on the decoder, a frozen tower, checkpointing."""
    encoder = VLM2Vec(tiny_model(), processor=None, max_len=None)  # type: ignore[arg-type]
    encoder.freeze(vision_tower=True)
    encoder.add_lora(LoraSettings(r=4, alpha=4, dropout=0.1, target_modules=("qkv_proj", "down_proj")))
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    encoder.gradient_checkpointing_enable()
    return encoder.train()


def both_orders(encoder: VLM2Vec, chunk: Chunk) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Representations of one seed with and without a graph, and gradients; the graph first, as with kept graphs."""
    arguments = chunk.arguments(torch.device("cpu"), True)
    encoder.zero_grad()
    with kept_norms(encoder):
        torch.manual_seed(5)
        kept = encoder(**arguments)
        torch.manual_seed(5)
        with torch.no_grad():
            encoded = encoder(**arguments)
        (kept * torch.arange(kept.numel()).view_as(kept).sin()).sum().backward()
    gradients = {name: each.grad for name, each in encoder.named_parameters() if each.grad is not None}
    return kept.detach(), encoded, gradients


def test_ten_shapes_share_few_graphs_and_give_the_same() -> None:
    plain = adapted_encoder()
    compiled = copy.deepcopy(plain)
    assert compile_layers(compiled, BACKEND) == 5
    torch.compiler.reset()
    counters.clear()
    shapes = set()
    for number in range(12):
        chunk = chunk_of(number)
        shapes.add(tuple(chunk.arguments(torch.device("cpu"), True)["input_ids"].shape))
        kept, encoded, gradients = both_orders(compiled, chunk)
        expected, _, expected_gradients = both_orders(plain, chunk)
        assert torch.equal(kept, encoded), "dropout is not replayed"
        assert torch.allclose(kept, expected, rtol=0, atol=TOLERANCE)
        assert gradients.keys() == expected_gradients.keys()
        pairs = [(gradients[name], each) for name, each in expected_gradients.items()]
        error = torch.stack([(one - other).square().sum() for one, other in pairs]).sum()
        assert (error / torch.stack([each.square().sum() for _, each in pairs]).sum()).sqrt() < TOLERANCE
    assert len(shapes) >= 10
    assert 2 <= counters["stats"]["unique_graphs"] <= MOST_GRAPHS
    assert not counters["graph_break"]
