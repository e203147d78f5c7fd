"""The interface of all families: module names that differ from the published ones, parts that can be frozen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from vlm2vec.backbones.phi3_v import Phi3VModel
from vlm2vec.choices import LoraSettings
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.lora import add_adapter, load_adapter
from vlm2vec.model_folder.adapter_files import write_adapter_config, write_adapter_weights

_OURS, _PUBLISHED = "model.layers.", "decoder.blocks."


class _Renamed(Phi3VModel):
    """A model whose published files call the decoder's layers otherwise."""

    prefixes: ClassVar[Mapping[str, str]] = {_OURS: _PUBLISHED}


def renamed(folder: Path) -> Phi3VModel:
    """The folder's model, as one with other names."""
    model = Phi3VModel.from_pretrained(folder)
    model.__class__ = _Renamed
    return model


def test_an_adapter_has_the_published_names(golden_model_dir: Path, tmp_path: Path) -> None:
    """Written with them and found by them; PEFT alone would leave such an adapter at its initial zeros."""
    settings = LoraSettings(r=2, target_modules=["o_proj", "q_proj"])
    adapted = add_adapter(renamed(golden_model_dir), settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.uniform_(-1, 1)
    write_adapter_config(adapted, tmp_path)
    write_adapter_weights(adapted, tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert any(name.startswith(f"base_model.model.{_PUBLISHED}0.self_attn.o_proj.lora_A") for name in names)
    assert not any(_OURS in name for name in names if "vision" not in name)
    loaded = load_adapter(renamed(golden_model_dir), tmp_path)
    expected, found = (get_peft_model_state_dict(each, save_embedding_layers=False) for each in (adapted, loaded))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(InputError, match="the adapter does not fit the model"):
        load_adapter(Phi3VModel.from_pretrained(golden_model_dir), tmp_path)


def test_shapes_of_files_have_the_published_names(golden_model_dir: Path) -> None:
    config, _ = Phi3VModel.check_folder(golden_model_dir)
    ours, published = Phi3VModel.tensor_shapes(config), _Renamed.tensor_shapes(config)
    assert len(ours) == len(published)
    assert f"{_PUBLISHED}0.self_attn.o_proj.weight" in published
    assert {_Renamed.module_name(name): shape for name, shape in published.items()} == ours


def test_targets_are_the_familys(golden_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = VLM2Vec.from_pretrained(golden_model_dir)
    monkeypatch.setattr(Phi3VModel, "lora_targets", ("down_proj",))
    encoder.add_lora(LoraSettings(r=2))
    adapted = {name.split(".lora_A")[0] for name, _ in encoder.named_parameters() if "lora_A" in name}
    assert adapted
    assert all(name.endswith(".down_proj") for name in adapted)


def test_a_part_that_a_model_does_not_have(golden_model_dir: Path) -> None:
    model = Phi3VModel.from_pretrained(golden_model_dir)
    with pytest.raises(InputError, match="resampler: a phi3_v has no such part; use vision_tower, projector"):
        model.freeze("resampler")
    parts = model.freezable()
    vision = {id(each) for module in model.vision_modules() for each in module.parameters()}
    assert {id(each) for part in parts.values() for each in part} == vision
    model.freeze("projector")
    assert not any(each.requires_grad for each in parts["projector"])


def test_few_layers_stand_for_many(golden_model_dir: Path) -> None:
    config, _ = Phi3VModel.check_folder(golden_model_dir)
    decoder, vision = Phi3VModel.depths(config)
    deeper = Phi3VModel.with_depths(config, decoder + 1, vision + 2)
    assert Phi3VModel.depths(deeper) == (decoder + 1, vision + 2)
    assert Phi3VModel.depths(config) == (decoder, vision)
    assert Phi3VModel.tensor_shapes(config).keys() < Phi3VModel.tensor_shapes(deeper).keys()
