"""Impossible values in config.json are refused in one line before anything is allocated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rig.qwen_golden import model_folder
from tests.rig.qwen_models import MODELS, loaded
from vlm2vec.backbones.checkpoint import checkpoint_shapes
from vlm2vec.errors import InputError

IMPOSSIBLE: tuple[Any, ...] = (0, -1, 10**12, 1e12, "x", [], {}, [1, 2], True)
TEXT = (
    *("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings"),
)
VISION = ("depth", "hidden_size", "num_heads", "patch_size", "spatial_merge_size", "temporal_patch_size")
OF_FAMILY = {
    "qwen2_vl": ("embed_dim", "mlp_ratio", "in_chans"),
    "qwen2_5_vl": ("intermediate_size", "out_hidden_size", "window_size", "in_chans"),
    "qwen3_vl": ("intermediate_size", "out_hidden_size", "num_position_embeddings", "in_channels"),
}


def text_prefix(family: str) -> str:
    return "text_config." if family == "qwen3_vl" else ""


FIELDS = [
    (family, field)
    for family in MODELS
    for field in (
        *(text_prefix(family) + name for name in (*TEXT, *(("head_dim",) if family == "qwen3_vl" else ()))),
        *(f"vision_config.{name}" for name in (*VISION, *OF_FAMILY[family])),
    )
]


def changed(family: str, folder: Path, field: str, value: Any) -> Path:
    """A folder whose config.json has another value; no weights are needed."""
    content = json.loads((model_folder(family) / "config.json").read_text())
    *parents, name = field.split(".")
    part = content
    for parent in parents:
        part = part[parent]
    part[name] = value
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("family", "field"), FIELDS)
def test_impossible_numbers_name_file_and_field(family: str, field: str, tmp_path: Path) -> None:
    for value in IMPOSSIBLE:
        folder = changed(family, tmp_path, field, value)
        with pytest.raises(InputError) as refusal:
            MODELS[family].load_config(folder, {})
        message = str(refusal.value)
        assert message.startswith(f"{folder / 'config.json'}: ")
        assert field.rsplit(".", 1)[-1] in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("family", "field", "value", "said"),
    [
        ("qwen2_vl", "hidden_act", "no such", 'hidden_act "no such" is not an activation'),
        ("qwen2_vl", "rms_norm_eps", "1e-6", 'rms_norm_eps is "1e-6"'),
        ("qwen2_vl", "torch_dtype", "int8", 'torch_dtype is "int8"'),
        ("qwen2_vl", "num_attention_heads", 3, "is not an even multiple of num_attention_heads 3"),
        ("qwen2_vl", "num_key_value_heads", 3, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ("qwen2_vl", "rope_scaling", {"type": "yarn", "factor": 4.0}, 'rope_scaling.type is "yarn"'),
        ("qwen2_vl", "rope_scaling", {"type": "mrope", "mrope_section": [2, 3, 4]}, "it must cut 8 frequencies"),
        ("qwen2_vl", "rope_scaling", {"type": "mrope", "mrope_section": [8]}, "rope_scaling.mrope_section is [8]"),
        ("qwen2_vl", "rope_scaling", None, "rope_scaling.mrope_section is [16, 24, 24]"),
        ("qwen2_vl", "rope_theta", -1.0, "rope_theta is -1.0"),
        ("qwen2_vl", "use_sliding_window", True, "use_sliding_window is true"),
        ("qwen2_vl", "quantization_config", {"quant_method": "x"}, "quantization_config is "),
        ("qwen2_vl", "image_token_id", 1536, "image_token_id 1536 is not below vocab_size"),
        ("qwen2_vl", "model_type", None, "model_type is null"),
        ("qwen2_vl", "vision_config", None, "vision_config is null"),
        ("qwen2_vl", "vision_config.hidden_size", 128, "hidden_size is 128, the language model's hidden_size 64"),
        ("qwen2_vl", "vision_config.num_heads", 3, "embed_dim 32 is not a multiple of 4 num_heads, 12"),
        ("qwen2_vl", "vision_config.hidden_act", None, "vision_config.hidden_act is null"),
        ("qwen2_5_vl", "vision_config.window_size", 30, "window_size 30 is not an even multiple of patch_size 14"),
        ("qwen2_5_vl", "vision_config.fullatt_block_indexes", [1, 4], "not ascending numbers of layers below 4"),
        ("qwen2_5_vl", "vision_config.fullatt_block_indexes", [-1], "fullatt_block_indexes.0 is -1"),
        ("qwen2_5_vl", "vision_config.out_hidden_size", 32, "out_hidden_size is 32, the language model's"),
        ("qwen3_vl", "text_config.rope_theta", None, "text_config.rope_theta is missing"),
        ("qwen3_vl", "text_config.rope_scaling.mrope_interleaved", False, "mrope_interleaved must be true"),
        ("qwen3_vl", "text_config.rope_scaling.mrope_section", [2, 5, 5], "it must cut 12 frequencies"),
        ("qwen3_vl", "text_config.head_dim", 23, "`head_dim`=23"),
        ("qwen3_vl", "text_config", None, "text_config is null"),
        ("qwen3_vl", "vision_config.num_position_embeddings", 145, "num_position_embeddings 145 is no square"),
        ("qwen3_vl", "vision_config.deepstack_visual_indexes", [0, 0, 1], "not ascending numbers of layers"),
        ("qwen3_vl", "vision_config.deepstack_visual_indexes", [0, 4], "not ascending numbers of layers below 4"),
        ("qwen3_vl", "text_config.num_hidden_layers", 2, "are more than text_config.num_hidden_layers"),
    ],
)
def test_values_that_do_not_fit(family: str, field: str, value: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        MODELS[family].load_config(changed(family, tmp_path, field, value), {})
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: ")
    assert said in message


@pytest.mark.parametrize("family", MODELS)
def test_width_and_depths_are_the_weights(family: str, tmp_path: Path) -> None:
    """A thousand layers would take minutes to build before names could be compared."""
    found = checkpoint_shapes(model_folder(family))
    for field in (f"{text_prefix(family)}num_hidden_layers", "vision_config.depth"):
        folder = changed(family, tmp_path, field, 1000)
        with pytest.raises(InputError, match=rf"config.json: {field} is 1000, but the weights have \d layers"):
            MODELS[family].load_config(folder, found)
    field = f"{text_prefix(family)}hidden_size"
    with pytest.raises(InputError, match=rf"config.json: {field} is 128, but the weights are 64 wide"):
        MODELS[family].load_config(changed(family, tmp_path, field, 128), found)


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("family", MODELS)
def test_another_familys_model_type(family: str, model_type: str, tmp_path: Path) -> None:
    """Said as such: the other family's own fields would all have transformers' defaults."""
    if family == model_type:
        return
    folder = changed(family, tmp_path, "model_type", model_type)
    with pytest.raises(InputError, match=rf"model_type is '{model_type}', but vision_config is a {family}'s \(it has "):
        MODELS[model_type].load_config(folder, {})


def test_a_field_that_is_absent_is_not_said_to_have_a_value(tmp_path: Path) -> None:
    content = json.loads((model_folder("qwen2_5_vl") / "config.json").read_text())
    del content["vision_config"]["out_hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"3584, .* \(the file has no vision_config.out_hidden_size: the value is trans"
    ):
        MODELS["qwen2_5_vl"].load_config(tmp_path, {})


def test_both_layouts_name_their_own_fields(tmp_path: Path) -> None:
    """Qwen2-VL's file may be flat, as published, or nested, as transformers writes it."""
    content = json.loads((model_folder("qwen2_vl") / "config.json").read_text())
    top = ("model_type", "vision_config", "image_token_id", "video_token_id", "tie_word_embeddings")
    text = {name: value for name, value in content.items() if name not in top}
    nested = {name: value for name, value in content.items() if name in top} | {"text_config": text | {"vocab_size": 0}}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    with pytest.raises(InputError, match=r"text_config\.vocab_size is 0"):
        MODELS["qwen2_vl"].load_config(tmp_path, {})


def test_numbers_that_may_be_absent(tmp_path: Path) -> None:
    """What a file leaves out has transformers' defaults."""
    folder = changed("qwen2_vl", tmp_path, "num_key_value_heads", None)
    config = MODELS["qwen2_vl"].load_config(folder, {})
    assert config.text_config.num_key_value_heads == config.text_config.num_attention_heads
    assert loaded("qwen2_vl").config.vision_config.hidden_act == "quick_gelu"
