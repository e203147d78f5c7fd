"""LoRA adapters: new ones, published ones, saved ones, and those that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.rig import golden
from tests.rig.comparing import assert_close_relative
from vlm2vec import VLM2Vec
from vlm2vec.choices import LoraSettings
from vlm2vec.errors import InputError
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.items import EncodeItem
from vlm2vec.model_folder.adapter_files import PEFT_0_11_KEYS
from vlm2vec.model_folder.settings import ChangedSettingWarning
from vlm2vec.model_folder.weights import weights_fingerprint

pytestmark = pytest.mark.numeric

ADAPTER = golden.PHI3V / "lora"
CASES = golden.read("lora/cases.json")


def load(path: Path, **options: Any) -> VLM2Vec:
    return VLM2Vec.from_pretrained(path, **{"num_crops": 1, "dtype": torch.float32, **options})


def encode_side(encoder: VLM2Vec, side: str) -> torch.Tensor:
    images = [golden.PHI3V / name if name else None for name in CASES[side]["images"]]
    return encoder.encode(CASES[side]["texts"], images)


@pytest.mark.parametrize("merge", [False, True])
def test_the_originals_adapter(golden_model_dir: Path, merge: bool) -> None:
    encoder = load(golden_model_dir, adapter=ADAPTER)
    if merge:
        encoder.merge_lora()
        assert not isinstance(encoder.backbone, PeftModel)
    expected = golden.tensors("lora/expected.safetensors")
    for side in ("query", "target"):
        name = f"{side}_embeddings" if merge else f"{side}_embeddings_unmerged"
        assert (encode_side(encoder, side) - expected[name]).abs().max() < golden.EMBEDDING_LIMIT


def adapter_copy(tmp_path: Path, base: Path) -> Path:
    folder = Path(shutil.copytree(ADAPTER, tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    return folder


def test_an_adapter_folder_alone_finds_its_base(golden_model_dir: Path, tmp_path: Path) -> None:
    folder = adapter_copy(tmp_path, golden_model_dir)
    expected = golden.tensors("lora/expected.safetensors")["query_embeddings_unmerged"]
    assert (encode_side(load(folder), "query") - expected).abs().max() < golden.EMBEDDING_LIMIT


def test_the_published_layout_is_a_pickle(golden_model_dir: Path, tmp_path: Path) -> None:
    folder = adapter_copy(tmp_path, golden_model_dir)
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "adapter_model.bin")
    encoder = load(golden_model_dir, adapter=folder)
    adapter = [parameter for name, parameter in encoder.named_parameters() if "lora_" in name]
    assert len(adapter) == len(tensors)
    assert {parameter.dtype for parameter in adapter} == {torch.float32}
    expected = golden.tensors("lora/expected.safetensors")["query_embeddings_unmerged"]
    assert torch.nn.functional.cosine_similarity(encode_side(encoder, "query"), expected).min() > 0.999


@pytest.mark.parametrize("change", ["half", "extra", "shape"])
def test_an_adapter_that_does_not_fit_is_refused(golden_model_dir: Path, tmp_path: Path, change: str) -> None:
    folder = adapter_copy(tmp_path, golden_model_dir)
    tensors = load_file(folder / "adapter_model.safetensors")
    if change == "half":  # PEFT itself would warn and run without the vision tower's adapter
        tensors = {name: tensor for name, tensor in tensors.items() if "vision_model" not in name}
    elif change == "extra":
        tensors["base_model.model.model.layers.9.self_attn.o_proj.lora_A.weight"] = torch.zeros(4, 64)
    else:
        name = next(name for name in tensors if name.endswith("lora_A.weight"))
        tensors[name] = tensors[name][:, :-1].clone()
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="does not fit the model"):
        load(golden_model_dir, adapter=folder)


def test_folders_without_an_adapter(golden_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no adapter weights"):
        load(golden_model_dir, adapter=tmp_path)
    folder = adapter_copy(tmp_path, golden_model_dir)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="names no base model"):
        load(folder)
    with pytest.raises(InputError, match=r"adapter_config.json: peft_type is missing"):
        load(golden_model_dir, adapter=folder)


def test_defaults_are_the_originals(golden_model_dir: Path) -> None:
    encoder = load(golden_model_dir)
    encoder.add_lora()
    config = encoder.backbone.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_dora) == (16, 64, 0.1, True)
    assert config.init_lora_weights == "gaussian"
    reference = json.loads((ADAPTER / "adapter_config.json").read_text())
    assert {name.rsplit(".", 1)[-1] for name in config.target_modules} == set(reference["target_modules"])
    trainable = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    # Two decoder linears' worth of three tensors, and the tower's attention without its last, unused layer.
    assert len(trainable) == 3 * (3 * 4 + 2 * 4)


def adapter_of(folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    encoder = load(folder, dtype=torch.bfloat16)
    encoder.add_lora(LoraSettings(r=4, **settings))
    return {name: p.detach().clone() for name, p in encoder.named_parameters() if "lora_" in name}


def test_the_seed_decides_the_adapter(golden_model_dir: Path) -> None:
    torch.manual_seed(1)
    first = adapter_of(golden_model_dir, seed=7)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, other = adapter_of(golden_model_dir, seed=7), adapter_of(golden_model_dir, seed=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert {tensor.dtype for tensor in first.values()} == {torch.float32}  # on a bf16 backbone


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_fresh_adapter_changes_nothing(golden_model_dir: Path, use_dora: bool) -> None:
    encoder = load(golden_model_dir)
    before = encode_side(encoder, "query")
    encoder.add_lora(LoraSettings(r=2, use_dora=use_dora, init="kaiming"))
    assert any("magnitude" in name for name, _ in encoder.named_parameters()) is use_dora
    assert_close_relative(encode_side(encoder, "query"), before, 1e-5)


def test_wrong_settings(golden_model_dir: Path) -> None:
    encoder = load(golden_model_dir)
    for settings, message in (
        ({"target_modules": ["qkv_proj", "nothing"]}, "nothing: no such linear layer"),
        ({"target_modules": []}, "none given"),
        ({"r": 0}, "r >= 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"init": "magic"}, "unknown LoRA init"),
    ):
        with pytest.raises(InputError, match=message):
            encoder.add_lora(LoraSettings(**settings))
    encoder.add_lora(LoraSettings(r=2))
    with pytest.raises(InputError, match="merge it first"):
        encoder.add_lora()


def test_save_and_load_an_adapter(golden_model_dir: Path, tmp_path: Path) -> None:
    encoder = load(golden_model_dir, num_crops=2)
    encoder.add_lora(LoraSettings(r=2))
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=torch.Generator().manual_seed(3))
    encoder.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = VLM2Vec.from_pretrained(tmp_path / "adapter")
    assert again.processor.image_limits["num_crops"] == 2
    assert torch.equal(encode_side(again, "query"), encode_side(encoder, "query"))
    encoder.merge_lora()
    encoder.save_pretrained(tmp_path / "merged")
    merged = VLM2Vec.from_pretrained(tmp_path / "merged")
    assert_close_relative(encode_side(merged, "query"), encode_side(again, "query"), 1e-5)


def test_freezing(golden_model_dir: Path) -> None:
    encoder = load(golden_model_dir)
    encoder.freeze(vision_tower=True)
    trainable = {name for name, parameter in encoder.base.named_parameters() if parameter.requires_grad}
    assert not any("img_processor" in name for name in trainable)
    assert any("img_projection" in name for name in trainable)
    encoder.freeze(projector=True)
    trainable = {name for name, parameter in encoder.base.named_parameters() if parameter.requires_grad}
    assert not any("vision_embed_tokens" in name for name in trainable)
    adapted = load(golden_model_dir)
    adapted.freeze(vision_tower=True)
    adapted.add_lora(LoraSettings(r=2))
    assert not any("vision_model" in name for name, _ in adapted.named_parameters() if "lora_" in name)
    with pytest.raises(InputError, match="before an adapter"):
        adapted.freeze(projector=True)
    with pytest.raises(InputError, match="nothing would be trained"):
        encoder.add_lora(LoraSettings(target_modules=["q_proj", "v_proj"]))


def test_configuration_is_what_old_versions_of_peft_read(golden_model_dir: Path, tmp_path: Path) -> None:
    encoder = load(golden_model_dir)
    encoder.add_lora(LoraSettings(r=2))
    encoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config.keys() == PEFT_0_11_KEYS
    assert config["inference_mode"] is True
    # PEFT 0.11.1's rule for a list: the whole name, or its end behind a dot.
    names = [name for name, _ in load(golden_model_dir).base.named_modules()]
    targets = config["target_modules"]
    chosen = {name for name in names if name in targets or any(name.endswith(f".{each}") for each in targets)}
    adapted = {name.removeprefix("base_model.model.") for name in saved_layers(tmp_path)}
    assert chosen == adapted
    assert not any(".encoder.layers.2." in name for name in adapted)


def saved_layers(folder: Path) -> set[str]:
    return {name.split(".lora_")[0] for name in load_file(folder / "adapter_model.safetensors")}


def test_a_relative_base_is_found_from_everywhere(
    golden_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(golden_model_dir.parent)
    encoder = VLM2Vec.from_pretrained(golden_model_dir.name, num_crops=1)
    encoder.add_lora(LoraSettings(r=2))
    monkeypatch.chdir(tmp_path)
    encoder.save_pretrained("adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(golden_model_dir)
    VLM2Vec.from_pretrained("adapter")
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"gone does not exist; pass the base as path"):
        VLM2Vec.from_pretrained("adapter")


def test_kinds_are_not_mixed_in_a_folder(golden_model_dir: Path, tmp_path: Path) -> None:
    encoder = load(golden_model_dir)
    (tmp_path / "whole").mkdir()
    for name in ("pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (tmp_path / "whole" / name).write_text("of a former save")
    (tmp_path / "whole" / "README.md").write_text("mine")
    encoder.save_pretrained(tmp_path / "whole")
    left = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {"model.safetensors", "README.md"} <= left
    assert not {"pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json"} & left
    encoder.add_lora(LoraSettings(r=2))
    with pytest.raises(InputError, match="holds a whole model"):
        encoder.save_pretrained(tmp_path / "whole")
    for _ in range(2):  # the same kind is replaced
        encoder.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="holds an adapter"):
        load(golden_model_dir).save_pretrained(tmp_path / "adapter")
    shutil.copy(tmp_path / "whole" / "model.safetensors", tmp_path / "adapter")
    with pytest.raises(InputError, match="holds an adapter and a whole model"):
        load(tmp_path / "adapter")


def test_texts_have_a_gradient_path_where_images_alone_are_trained(golden_model_dir: Path) -> None:
    encoder = load(golden_model_dir)
    encoder.add_lora(LoraSettings(r=2, target_modules=["q_proj", "v_proj"]))
    inputs = ItemEncoderInputs(encoder.processor, 64, always_dummy=encoder.base.trains_images_alone)
    text = inputs.chunk_of([EncodeItem("a text", (), "a text")])
    encoder(**text.arguments(encoder.device, dummy_image=False)).sum().backward()
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in trained)


def test_a_target_that_names_more_than_linear_layers(golden_model_dir: Path) -> None:
    with pytest.raises(InputError, match=r"0 also matches .* such as img_projection\.0"):
        load(golden_model_dir).add_lora(LoraSettings(target_modules=["0"]))
    encoder = load(golden_model_dir)
    encoder.add_lora(LoraSettings(r=2, target_modules=["img_projection.0", "o_proj"]))
    assert any("img_projection.0.lora_A" in name for name, _ in encoder.named_parameters())


def test_an_adapter_knows_its_base(golden_model_dir: Path, tmp_path: Path) -> None:
    encoder = load(golden_model_dir)
    encoder.add_lora(LoraSettings(r=2))
    encoder.save_pretrained(tmp_path / "adapter")
    other = Path(shutil.copytree(golden_model_dir, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    torch.save({name: tensor.bfloat16() for name, tensor in weights.items()}, other / "pytorch_model.bin")
    (other / "model.safetensors").unlink()
    assert weights_fingerprint(other) == weights_fingerprint(golden_model_dir)  # the same in another file and precision
    load(other, adapter=tmp_path / "adapter")
    weights["model.layers.1.mlp.down_proj.weight"] *= 1.1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="was trained on a different base model"):
        load(other, adapter=tmp_path / "adapter")
    with pytest.warns(ChangedSettingWarning, match="a different base model"):
        load(other, adapter=tmp_path / "adapter", allow_other_base=True)
    settings = json.loads((tmp_path / "adapter" / "vlm2vec_config.json").read_text())
    assert settings["base_fingerprint"] == weights_fingerprint(golden_model_dir)
