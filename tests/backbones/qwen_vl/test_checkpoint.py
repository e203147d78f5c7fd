"""Names, shapes and configurations of the published checkpoints, and loading and saving with them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from tests.rig.golden import ROOT
from tests.rig.qwen_golden import model_folder
from tests.rig.qwen_models import MODELS, copied, loaded
from tests.rig.qwen_native import NATIVE
from vlm2vec import VLM2Vec
from vlm2vec.backbones.checkpoint import renamed
from vlm2vec.backbones.registry import family_named
from vlm2vec.choices import LoraSettings
from vlm2vec.errors import InputError
from vlm2vec.lora import load_adapter
from vlm2vec.model_folder.adapter_files import IN_PEFT, write_adapter_config, write_adapter_weights
from vlm2vec.model_folder.weights import weights_fingerprint

FULL_SIZE = {
    "qwen2_vl_2b": "qwen2_vl",
    "qwen2_vl_7b": "qwen2_vl",
    "qwen2_5_vl_3b": "qwen2_5_vl",
    "qwen3_vl_2b": "qwen3_vl",
}
# Of what is shipped beside them, the published number of parameters is known; without the output head.
COUNTED = {"Qwen3-VL-8B-Instruct": ("qwen3_vl", 8_144_793_840)}
families = pytest.mark.parametrize("family", MODELS)


@pytest.mark.parametrize("size", FULL_SIZE)
def test_full_size_names_and_shapes(size: str) -> None:
    """Exactly the published checkpoint's tensors, but for the head of a model that is not tied."""
    published = json.loads((ROOT / f"{size}_full_size_shapes.json").read_text())
    model = MODELS[FULL_SIZE[size]]
    shapes = model.tensor_shapes(model.config_class.from_dict(published["config"]))
    expected = {name: tuple(shape) for name, shape in published["tensors"].items()}
    head = set() if published["config"]["tie_word_embeddings"] else {model.tensor_names.head}
    assert shapes == {name: shape for name, shape in expected.items() if name not in head}
    assert shapes.keys() | head == expected.keys()
    total = sum(torch.Size(shape).numel() for shape in expected.values())
    assert total == published["parameters"]


@pytest.mark.parametrize("size", FULL_SIZE)
def test_the_configuration_is_written_in_the_published_layout(size: str) -> None:
    published = json.loads((ROOT / f"{size}_full_size_shapes.json").read_text())["config"]
    config = MODELS[FULL_SIZE[size]].config_class.from_dict(copy.deepcopy(published))
    written = json.loads(config.to_json_string())
    assert written.keys() - published.keys() == {"transformers_version"}
    for name, value in published.items():
        if name == "vision_config":
            assert written[name].keys() - value.keys() <= {"hidden_act", "initializer_range"}
            assert written[name] | value == written[name]
        else:
            assert written[name] == value, name


@families
def test_round_trip(family: str, tmp_path: Path) -> None:
    model, weights = loaded(family), load_file(model_folder(family) / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    model.save_pretrained(tmp_path / "saved")
    written = load_file(tmp_path / "saved" / "model.safetensors")
    assert written.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in written.items())
    again = MODELS[family].from_pretrained(tmp_path / "saved")
    assert again.config.to_diff_dict() == model.config.to_diff_dict()


@families
def test_transformers_loads_what_is_saved(family: str, tmp_path: Path) -> None:
    model = loaded(family)
    model.save_pretrained(tmp_path)
    native, info = NATIVE[family].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert native.config.text_config.rope_parameters == model.config.text_config.rope_parameters
    token = native.get_input_embeddings().weight
    assert torch.equal(token, model.token_embeddings)
    assert native.get_output_embeddings().weight is token


@families
def test_transformers_own_layout_is_read(family: str, tmp_path: Path) -> None:
    """transformers writes config.json in a layout of its own, and tensors under the published names."""
    native = NATIVE[family].from_pretrained(model_folder(family))
    native.save_pretrained(tmp_path)
    assert "rope_parameters" in json.loads((tmp_path / "config.json").read_text())["text_config"]
    model = MODELS[family].from_pretrained(tmp_path)
    assert _kept(model.config.to_diff_dict()) == _kept(loaded(family).config.to_diff_dict())


# Beginnings of published names, with other programs' spellings: transformers' module names, and those of its AutoModel.
SPELLED: dict[str, list[dict[str, str]]] = {
    "qwen2_vl": [
        {"model.": "model.language_model.", "visual.": "model.visual."},
        {"model.": "language_model.", "visual.": "visual."},
    ],
    "qwen3_vl": [{"model.": ""}],
}
SPELLED["qwen2_5_vl"] = SPELLED["qwen2_vl"]


@families
def test_other_spellings_are_read(family: str, tmp_path: Path) -> None:
    """Weights and adapters alike; what is written has the published names."""
    weights = load_file(model_folder(family) / "model.safetensors")
    expected = loaded(family).state_dict()
    fingerprint = weights_fingerprint(model_folder(family))
    encoder = VLM2Vec(loaded(family), processor=None)  # type: ignore[arg-type]
    encoder.add_lora(LoraSettings(r=2, target_modules=["q_proj", "mlp.up_proj" if family == "qwen2_5_vl" else "qkv"]))
    write_adapter_config(encoder.backbone, tmp_path)
    write_adapter_weights(encoder.backbone, tmp_path)
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    for spelled in SPELLED[family]:
        folder = copied(family, tmp_path / f"model{len(spelled)}{spelled['model.']}")
        save_file({renamed(name, spelled): tensor for name, tensor in weights.items()}, folder / "model.safetensors")
        assert weights.keys().isdisjoint(load_file(folder / "model.safetensors")) or "visual." in spelled.values()
        model = MODELS[family].from_pretrained(folder)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
        assert weights_fingerprint(folder) == fingerprint
        model.save_pretrained(folder)
        assert load_file(folder / "model.safetensors").keys() == weights.keys()

        other = {IN_PEFT + renamed(name.removeprefix(IN_PEFT), spelled): tensor for name, tensor in adapter.items()}
        save_file(other, tmp_path / "adapter_model.safetensors")
        found = get_peft_model_state_dict(load_adapter(loaded(family), tmp_path), save_embedding_layers=False)
        assert found.keys() == adapter.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in adapter.items())


@families
def test_what_transformers_writes_without_the_head_is_read(family: str, tmp_path: Path) -> None:
    AutoModel.from_pretrained(model_folder(family)).save_pretrained(tmp_path)
    assert any(name.startswith("language_model.") for name in load_file(tmp_path / "model.safetensors"))
    expected = loaded(family).state_dict()
    found = MODELS[family].from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_two_spellings_of_one_tensor_are_refused(tmp_path: Path) -> None:
    folder = copied("qwen2_vl", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"model.language_model.norm.weight": weights["model.norm.weight"] + 1}, folder / "model.safetensors"
    )
    with pytest.raises(InputError, match=r"1 unexpected \(model.language_model.norm.weight\)"):
        MODELS["qwen2_vl"].from_pretrained(folder)


def _kept(config: dict[str, Any]) -> dict[str, Any]:
    """Without what transformers does not keep of a published file."""
    vision = {name: value for name, value in config["vision_config"].items() if name != "in_chans"}
    gone = ("architectures", "vision_config", "sliding_window")
    return {name: value for name, value in config.items() if name not in gone} | {"vision": vision}


@families
def test_an_output_head_is_left_out(family: str, tmp_path: Path) -> None:
    """A model that is not tied has a head in its files, which no embedding depends on."""
    folder = copied(family, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    embeddings = weights[MODELS[family].tensor_names.embeddings]
    save_file(weights | {"lm_head.weight": torch.ones_like(embeddings)}, folder / "model.safetensors")
    model = MODELS[family].from_pretrained(folder)
    assert "lm_head.weight" not in model.state_dict()
    assert torch.equal(model.token_embeddings, embeddings)


@families
def test_missing_and_unexpected_tensors(family: str, tmp_path: Path) -> None:
    folder = copied(family, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("attn.qkv.bias"))
    for changed, said in (
        ({each: tensor for each, tensor in weights.items() if each != name}, rf"1 missing \({name}\)"),
        (weights | {"visual.extra.weight": weights[name].clone()}, r"1 unexpected \(visual.extra.weight\)"),
        (weights | {name: weights[name][:-1].clone()}, rf"{name} has shape \[95\]"),
    ):
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(InputError, match=said):
            MODELS[family].from_pretrained(folder)


@families
def test_published_configurations_are_shipped(family: str) -> None:
    """As the published files are, so that a model is planned without its folder."""
    shipped = family_named(family, "test").published_configs
    published = {
        f"{size}_full_size_shapes.json": json.loads((ROOT / f"{size}_full_size_shapes.json").read_text())["config"]
        for size, of_family in FULL_SIZE.items()
        if of_family == family
    }
    folders = [folder for folder in dict.fromkeys(shipped.values()) if folder.name not in COUNTED]
    assert [json.loads((folder / "config.json").read_text()) for folder in folders] == list(published.values())
    for folder in shipped.values():
        MODELS[family].load_config(folder, {})


@pytest.mark.parametrize("name", COUNTED)
def test_the_published_number_of_parameters(name: str) -> None:
    family, expected = COUNTED[name]
    model = MODELS[family]
    folder = family_named(family, "test").published_configs[f"Qwen/{name}"]
    shapes = model.tensor_shapes(model.load_config(folder, {}))
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == expected
