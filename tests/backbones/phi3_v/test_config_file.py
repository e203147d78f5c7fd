"""Impossible values in config.json and its companions are refused in one line before anything is allocated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trials.fuzz_configs import run
from vlm2vec.backbones.checkpoint import checkpoint_shapes
from vlm2vec.backbones.phi3_v import Phi3VModel, Phi3VProcessor
from vlm2vec.backbones.phi3_v.checkpoint import load_config
from vlm2vec.errors import InputError

IMPOSSIBLE: tuple[Any, ...] = (0, -1, 10**12, 1e12, "x", [], {}, [1, 2], True)
COUNTS = (
    *("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "original_max_position_embeddings"),
    *("vision_config.hidden_size", "vision_config.num_hidden_layers", "vision_config.num_attention_heads"),
    *("vision_config.image_size", "vision_config.patch_size", "vision_config.num_channels"),
)


def changed(model: Path, folder: Path, field: str, value: Any) -> Path:
    """A folder whose config.json has another value; no weights are needed."""
    content = json.loads((model / "config.json").read_text())
    *parents, name = field.split(".")
    part = content
    for parent in parents:
        part = part[parent]
    part[name] = value
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("field", COUNTS)
def test_impossible_numbers_name_file_and_field(golden_model_dir: Path, tmp_path: Path, field: str) -> None:
    for value in IMPOSSIBLE:
        folder = changed(golden_model_dir, tmp_path, field, value)
        with pytest.raises(InputError) as refusal:
            load_config(folder, {})
        message = str(refusal.value)
        assert message.startswith(f"{folder / 'config.json'}: ")
        assert field.rsplit(".", 1)[-1] in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden_act", "no such", 'hidden_act "no such" is not an activation'),
        ("vision_config.hidden_act", None, "vision_config.hidden_act is null"),
        ("rms_norm_eps", "1e-5", 'rms_norm_eps is "1e-5"'),
        ("dtype", "int8", 'dtype is "int8"'),
        ("pad_token_id", 10**6, "pad_token_id 1000000 is not below vocab_size"),
        ("quantization_config", {"quant_method": "x"}, "quantization_config is "),
        ("rope_scaling", {"type": "yarn"}, 'rope_scaling.type is "yarn"'),
        ("rope_scaling", {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}, "rope_scaling.short_factor must"),
        ("rope_scaling", {"type": "su"}, "rope_scaling.short_factor must be"),
        ("rope_theta", -1.0, "rope_theta is -1.0"),
        ("vision_config", [], "vision_config is []"),
        ("vision_config.image_size", 30, "image_size 30 is not an even multiple"),
        ("num_attention_heads", 3, "is not an even multiple of num_attention_heads 3"),
        ("model_type", None, "model_type is null"),
    ],
)
def test_values_that_do_not_fit(golden_model_dir: Path, tmp_path: Path, field: str, value: Any, said: str) -> None:
    with pytest.raises(InputError) as refusal:
        load_config(changed(golden_model_dir, tmp_path, field, value), {})
    assert said in str(refusal.value)


@pytest.mark.parametrize("field", ["num_hidden_layers", "vision_config.num_hidden_layers"])
def test_depths_are_the_weights(golden_model_dir: Path, tmp_path: Path, field: str) -> None:
    """A thousand layers would take minutes to build before names could be compared."""
    folder = changed(golden_model_dir, tmp_path, field, 1000)
    with pytest.raises(InputError, match=rf"config.json: {field} is 1000, but the weights have \d layers"):
        load_config(folder, checkpoint_shapes(golden_model_dir))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"num_crops": 0}, "num_crops is 0"),
        ({"num_crops": 10**12}, "num_crops is 1000000000000"),
        ({"num_crops": "4"}, 'num_crops is "4"'),
        ({"num_crops": 4, "image_mean": None, "image_std": [0, 1, 1]}, "image_std.0 is 0"),
        ({"num_crops": 4, "image_mean": [1.0, 1.0]}, "image_mean is [1.0, 1.0]"),
        ({"num_crops": 4, "image_mean": "x"}, 'image_mean is "x"'),
    ],
)
def test_impossible_processors(golden_model_dir: Path, tmp_path: Path, content: object, said: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(golden_model_dir / name, tmp_path / name)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as refusal:
        Phi3VProcessor.from_pretrained(tmp_path)
    assert f"preprocessor_config.json: {said}" in str(refusal.value)


def test_null_is_as_good_as_absent_where_there_is_a_default(golden_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(golden_model_dir, tmp_path / "model")
    changed(folder, folder, "num_key_value_heads", None)
    Phi3VModel.from_pretrained(folder)


def test_a_sample_of_damaged_files(mini_model_dir: Path) -> None:
    """Each is refused in one line, or gives the undamaged vectors; `fuzz_configs` runs any number of them."""
    counts, wrong = run(mini_model_dir, trials=14, seed=1)
    assert not wrong
    assert counts["refused"] > 5
