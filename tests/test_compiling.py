"""Compiled elementwise operators: the same results, gradients and dropout masks, with few graphs for many shapes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from trials.rig.tiny import processed_inputs, tiny_item, tiny_model
from vlm2vec.choices import LoraSettings
from vlm2vec.compiling import compile_layers
from vlm2vec.contrastive import Chunk
from vlm2vec.dora import DoraLinear, kept_norms
from vlm2vec.encoder import VLM2Vec

# The code that autograd gets, run operator by operator: inductor's C++ compiler would take minutes.
BACKEND = "aot_eager"
TOLERANCE = 1e-6  # relative
BF16_STEP = 2.0**-8
# Per function and width: forward and backward; and again for a single text or image where rows are not flattened.
NUM_COMPARED = 4
MOST_GRAPHS = 20
LORA = LoraSettings(r=4, alpha=4, dropout=0.1, target_modules=("qkv_proj", "down_proj", "q_proj", "out_proj"))


def chunk_of(number: int) -> Chunk:
    """Chunks of different widths, rows and numbers of images."""
    items = [tiny_item(10 * number + row, row % 2 == number % 2) for row in range(2 + number % 3)]
    return processed_inputs().chunk(items)


def encoder_of(lora: LoraSettings | None, dtype: torch.dtype = torch.float32) -> VLM2Vec:
    """DoRA with dropout or all weights, in decoder and tower, with checkpointing."""
    encoder = VLM2Vec(tiny_model().to(dtype), processor=None, max_len=None)  # type: ignore[arg-type]
    encoder.base.set_attn_implementation("sdpa")
    if lora is not None:
        encoder.add_lora(lora)
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


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all gradients together, relative."""
    assert found.keys() == expected.keys()
    error = sum(float((found[name].double() - each.double()).square().sum()) for name, each in expected.items())
    return float((error / sum(float(each.double().square().sum()) for each in expected.values())) ** 0.5)


@pytest.mark.parametrize(("lora", "num_chunks"), [(LORA, 12), (None, 3)], ids=["dora", "full"])
def test_ten_shapes_share_few_graphs_and_give_the_same(lora: LoraSettings | None, num_chunks: int) -> None:
    plain = encoder_of(lora)
    compiled = copy.deepcopy(plain)
    # Per decoder layer two norms, attention and MLP; the last norm; per tower layer two norms and the activation.
    num_adapted = sum(isinstance(each, DoraLinear) for each in compiled.modules())
    assert compile_layers(compiled, BACKEND) == 2 * 4 + 1 + 3 * 3 + num_adapted
    torch.compiler.reset()
    counters.clear()
    shapes = set()
    for number in range(num_chunks):
        chunk = chunk_of(number)
        shapes.add(tuple(chunk.arguments(torch.device("cpu"), True)["input_ids"].shape))
        kept, encoded, gradients = both_orders(compiled, chunk)
        expected, _, expected_gradients = both_orders(plain, chunk)
        assert torch.equal(kept, encoded), "dropout is not replayed"
        assert torch.allclose(kept, expected, rtol=0, atol=TOLERANCE)
        assert distance(gradients, expected_gradients) < TOLERANCE
        assert all(bool(each.any()) for name, each in gradients.items() if "lora_" in name)
    assert len(shapes) >= num_chunks - 2
    assert 2 <= counters["stats"]["unique_graphs"] <= MOST_GRAPHS
    assert not counters["graph_break"]


def test_bf16_is_as_close_to_float32_as_uncompiled() -> None:
    """Under autocast: both round; compiled, not more often. Over several chunks: of one, either may be the closer."""
    plain = encoder_of(LORA, torch.bfloat16)
    exact = copy.deepcopy(plain).float()
    compiled = copy.deepcopy(plain)
    compile_layers(compiled, BACKEND)
    torch.compiler.reset()
    errors, rounded = [], []
    for seed in range(NUM_COMPARED):
        _, _, expected = both_orders(exact, chunk_of(seed))
        kept, encoded, gradients = both_orders(compiled, chunk_of(seed))
        assert torch.equal(kept, encoded)
        errors.append(distance(gradients, expected))
        rounded.append(distance(both_orders(plain, chunk_of(seed))[2], expected))
    assert sum(errors) < 1.3 * sum(rounded) < NUM_COMPARED * 16 * BF16_STEP
