"""LoRA adapters: VLM2Vec's published ones on Qwen2-VL and Qwen2.5-VL, and new ones on all three families."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from tests.rig import golden, qwen_golden
from tests.rig.qwen_items import FORMATS, encode_arguments, items_of
from tests.rig.qwen_models import MODELS, loaded
from vlm2vec import VLM2Vec
from vlm2vec.choices import LoraSettings

pytestmark = pytest.mark.numeric
families = pytest.mark.parametrize("family", MODELS)
# Qwen3-VL-Embedding is published as whole models alone.
WITH_ADAPTER = ("qwen2_vl", "qwen2_5_vl")


def load(family: str, adapter: Path | None = None, implementation: str | None = None) -> VLM2Vec:
    return VLM2Vec.from_pretrained(
        qwen_golden.model_folder(family),
        adapter,
        dtype=torch.float32,
        attn_implementation=implementation,
        prompt_format=FORMATS[family],
    )


@pytest.mark.parametrize("family", WITH_ADAPTER)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@qwen_golden.RESIZED
def test_the_originals_adapter(family: str, implementation: str) -> None:
    """Its names are those of a model without prefixes; PEFT alone would leave all of them out."""
    expected = qwen_golden.tensors(family, "lora/expected.safetensors")
    sides = {side: items_of(family, each) for side, each in qwen_golden.read(family, "lora/cases.json").items()}
    adapter = golden.ROOT / family / "lora"
    plain, adapted, merged = (load(family, each, implementation) for each in (None, adapter, adapter))
    merged.merge_lora()
    assert not isinstance(merged.backbone, PeftModel)
    for name, encoder in (("base_without_adapter", plain), ("adapter", adapted), ("merged", merged)):
        for side, items in sides.items():
            vectors = encoder.encode(**encode_arguments(items))
            assert (vectors - expected[f"{side}.{name}"]).abs().max() < golden.EMBEDDING_LIMIT, (name, side)
    assert (expected["query.adapter"] - expected["query.base_without_adapter"]).abs().max() > 0.01


@pytest.mark.parametrize("family", WITH_ADAPTER)
def test_an_adapter_is_written_under_the_originals_names(family: str, tmp_path: Path) -> None:
    source = Path(shutil.copytree(golden.ROOT / family / "lora", tmp_path / "source"))
    load(family, source).save_pretrained(tmp_path / "saved")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (source, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(qwen_golden.model_folder(family))


@families
def test_default_layers(family: str) -> None:
    """VLM2Vec's list; in Qwen2.5-VL it names the tower's MLPs too, which are adapted by the original as well."""
    encoder = load(family)
    encoder.add_lora(LoraSettings(r=2))
    adapted = {
        name.partition(".lora_A")[0].removeprefix("base_model.model.")
        for name, _ in encoder.backbone.named_parameters()
        if ".lora_A" in name
    }
    linears = {name for name, module in loaded(family).named_modules() if isinstance(module, nn.Linear)}
    in_tower = {name for name in linears if "visual" in name and "mlp." in name and "merger" not in name}
    in_decoder = {name for name in linears if "visual" not in name}
    assert adapted == in_decoder | (in_tower if family == "qwen2_5_vl" else set())
    if family in WITH_ADAPTER:
        written = load_file(golden.ROOT / family / "lora" / "adapter_model.safetensors")
        assert adapted == {
            name.partition(".lora_A")[0].removeprefix("base_model.model.") for name in written if ".lora_A" in name
        }


@families
def test_frozen_towers_get_no_adapter(family: str) -> None:
    encoder = load(family)
    encoder.freeze(vision_tower=True)
    encoder.add_lora(LoraSettings(r=2))
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trained
    assert not any("visual" in name for name in trained)


@families
def test_a_new_adapter_comes_back(family: str, tmp_path: Path) -> None:
    encoder = load(family)
    encoder.add_lora(LoraSettings(r=2, seed=1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
    encoder.save_pretrained(tmp_path)
    texts = ["hello", "The quick brown fox"]
    again = VLM2Vec.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(encoder.eval().encode(texts), again.encode(texts))
    assert not torch.equal(load(family).encode(texts), again.encode(texts))
