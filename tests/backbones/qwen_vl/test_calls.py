"""Properties of a model call: independence of other rows, dummy images, precision, recomputation, depths."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.rig import qwen_golden
from tests.rig.comparing import assert_close_relative
from tests.rig.qwen_calls import ROWS, Call, dummy_arguments, made_call, synthetic_images
from tests.rig.qwen_models import MODELS, loaded
from vlm2vec.backbones.interface import PROJECTOR, VISION_TOWER
from vlm2vec.backbones.qwen_vl.tower import PatchProjection

families = pytest.mark.parametrize("family", MODELS)
NATIVE: dict[str, type[PreTrainedModel]] = {
    "qwen2_vl": transformers.Qwen2VLModel,
    "qwen2_5_vl": transformers.Qwen2_5_VLModel,
    "qwen3_vl": transformers.Qwen3VLModel,
}


@families
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_transformers_own_forward_gives_the_same(family: str, implementation: str) -> None:
    """Several images of several sizes in a chunk; transformers attends them one by one and finds positions itself."""
    model = loaded(family, implementation)
    native = NATIVE[family].from_pretrained(
        qwen_golden.model_folder(family), dtype=torch.float32, attn_implementation=implementation
    )
    call = made_call(model.config, ROWS)
    grids = torch.tensor([[1, *part] for row in ROWS for part in row if isinstance(part, tuple)])
    # Adjacent images confuse transformers' positions, but not the rest of it.
    with torch.no_grad():
        expected = native.eval()(
            input_ids=call["input_ids"],
            attention_mask=call["attention_mask"],
            position_ids=call["position_ids"],
            pixel_values=torch.cat([synthetic_images(model.config, grid[None])[0] for grid in grids]),
            image_grid_thw=grids,
        ).last_hidden_state
        hidden = model(**call)
    real = call["attention_mask"] == 1
    assert_close_relative(hidden[real], expected[real], 1e-5)


@families
def test_a_row_does_not_depend_on_its_neighbours(family: str) -> None:
    model = loaded(family)
    with torch.no_grad():
        together = model(**made_call(model.config, ROWS))
        for index, row in enumerate(ROWS):
            alone = model(**made_call(model.config, [row]))[0]
            assert_close_relative(together[index, : len(alone)], alone, 1e-5)


@families
def test_padding_does_not_reach_real_tokens(family: str) -> None:
    model = loaded(family)
    call = made_call(model.config, ROWS)
    real = call["attention_mask"] == 1
    other = {**call, "input_ids": call["input_ids"].masked_fill(~real, 7)}
    with torch.no_grad():
        assert torch.equal(model(**call)[real], model(**other)[real])


@families
def test_images_may_come_in_any_order(family: str) -> None:
    """Sorted ones are attended in fewer batches; the places of their tokens decide where they belong."""
    model = loaded(family)
    call = made_call(model.config, [ROWS[0], ROWS[3]])
    images = [(6, 10), (4, 4), (4, 4), (2, 2)]
    assert call["image_lengths"] == tuple(sorted(rows * columns for rows, columns in images))
    # One image a call of the tower, and the features put together.
    with torch.no_grad():
        whole = model.tower(**{name: each for name, each in call.items() if name in tower_arguments(call)})
        start = 0
        for length in call["image_lengths"]:
            grid = next(grid for grid in images if grid[0] * grid[1] == length)
            alone = made_call(model.config, [[grid]])
            single = model.tower(**{name: each for name, each in alone.items() if name in tower_arguments(call)})
            for features, expected in zip(whole, single, strict=True):
                assert_close_relative(features[start : start + length // 4], expected, 1e-5)
            start += length // 4


def tower_arguments(call: Call) -> set[str]:
    return set(call) - {"input_ids", "attention_mask", "position_ids", "image_rows"}


@families
@pytest.mark.parametrize("checkpointing", [False, True])
def test_dummy_image_is_weightless(family: str, checkpointing: bool) -> None:
    """It reaches every parameter that an image reaches, with a gradient of exactly zero."""
    model = loaded(family).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    call = made_call(model.config, [ROWS[1]])
    plain, with_dummy = model(**call), model(**call, **dummy_arguments(model.config))
    assert torch.equal(plain, with_dummy)
    with_dummy.square().sum().backward()
    of_images = {id(each) for part in model.vision_modules() for each in part.parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() != (id(parameter) in of_images), name


@families
def test_every_parameter_gets_a_gradient_from_a_chunk_with_an_image(family: str) -> None:
    model = loaded(family).train()
    assert not model.unused_modules()
    model(**made_call(model.config, ROWS)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@families
def test_gradient_checkpointing_runs_every_layer_again(family: str) -> None:
    model = loaded(family).train()
    call = made_call(model.config, ROWS)
    runs: dict[str, int] = {}
    layers = {name: each for name, each in model.named_modules() if isinstance(each, GradientCheckpointingLayer)}
    assert len(layers) == len(model.decoder.layers) + len(model.tower.blocks)
    for name, layer in layers.items():
        for norm in (layer.norm1,) if "blocks" in name else (layer.input_layernorm,):
            norm.register_forward_hook(lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1}))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        runs.clear()
        model(**call).square().sum().backward()
        assert set(runs.values()) == {2 if checkpointing else 1}
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


@families
def test_rotary_frequencies_survive_a_cast(family: str) -> None:
    """A cast of the whole model (`.to(bfloat16)`, DeepSpeed's engines) would round them to 8 bits."""
    exact = loaded(family)
    cast = loaded(family).to(torch.bfloat16)
    assert not list(exact.buffers())
    call = made_call(exact.config, ROWS)
    call["position_ids"] = call["position_ids"] + 20_000  # where rounded frequencies would be far off
    for before, after, arguments in (
        (exact.decoder.rotary_emb, cast.decoder.rotary_emb, (torch.zeros(1), call["position_ids"])),
        (exact.tower.rotary_pos_emb, cast.tower.rotary_pos_emb, (call["patch_positions"] + 500,)),
    ):
        assert all(torch.equal(one, two) for one, two in zip(before(*arguments), after(*arguments), strict=True))
    with torch.no_grad():
        hidden, expected = cast(**call), exact(**call)
    assert hidden.dtype == torch.bfloat16
    real = call["attention_mask"] == 1
    assert nn.functional.cosine_similarity(hidden[real].float(), expected[real], dim=-1).min() > 0.99


@families
def test_the_patch_embedding_is_the_convolution(family: str) -> None:
    model = loaded(family)
    projection = model.tower.patch_embed.proj
    assert isinstance(projection, PatchProjection)
    patches = torch.randn(6, 3, *projection.kernel_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close_relative(projection(patches), nn.Conv3d.forward(projection, patches).flatten(1), 1e-5)


@families
def test_parts_that_can_be_frozen(family: str) -> None:
    model = loaded(family)
    parts = model.freezable()
    of_images = {id(each) for part in model.vision_modules() for each in part.parameters()}
    tower, projector = ({id(each) for each in parts[name]} for name in (VISION_TOWER, PROJECTOR))
    assert tower | projector == of_images
    assert not tower & projector
    names = {name for name, each in model.named_parameters() if id(each) in projector}
    assert names == {name for name, _ in model.named_parameters() if re.search(r"visual\.(deepstack_)?merger", name)}
    assert not model.trains_images_alone
    for parameter in model.decoder.parameters():
        parameter.requires_grad_(False)
    assert model.trains_images_alone
