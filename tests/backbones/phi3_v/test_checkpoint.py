"""Loading and saving Phi-3-V: every layout of published checkpoints, and every kind of damage."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.rig import golden
from vlm2vec import VLM2Vec
from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VModel
from vlm2vec.choices import LoraSettings
from vlm2vec.errors import InputError

ALIAS, EMBEDDINGS = "model.vision_embed_tokens.wte.weight", "model.embed_tokens.weight"


@pytest.fixture
def folder(golden_model_dir: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(golden_model_dir, tmp_path / "model"))


@pytest.fixture(scope="module")
def weights(golden_model_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(golden_model_dir / "model.safetensors")


def check_loads(folder: Path, weights: dict[str, torch.Tensor]) -> Phi3VModel:
    model = Phi3VModel.from_pretrained(folder, dtype=torch.float32)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    return model


def save_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")


def test_single_file_and_round_trip(folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    check_loads(folder, weights).save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == weights.keys() - {"lm_head.weight"}
    check_loads(tmp_path / "saved", weights)


def test_shards(folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    check_loads(folder, weights).save_pretrained(sharded, max_shard_size="300KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    check_loads(sharded, weights)
    sorted(sharded.glob("*.safetensors"))[1].unlink()
    with pytest.raises(InputError, match=r"shard model-00002.* is missing"):
        Phi3VModel.from_pretrained(sharded)


@pytest.mark.parametrize("sharded", [False, True])
def test_pickles(folder: Path, weights: dict[str, torch.Tensor], sharded: bool) -> None:
    """The published full checkpoint's layout, second name of the token embedding included."""
    (folder / "model.safetensors").unlink()
    weights = {**weights, ALIAS: weights[EMBEDDINGS]}
    names = sorted(weights)
    if sharded:
        files = {"pytorch_model-00001-of-2.bin": names[:40], "pytorch_model-00002-of-2.bin": names[40:]}
        index = {"metadata": {}, "weight_map": {name: file for file, held in files.items() for name in held}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        files = {"pytorch_model.bin": names}
    for file, held in files.items():
        torch.save({name: weights[name] for name in held}, folder / file)
    check_loads(folder, weights)


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/should-not-exist",)


def test_a_pickle_with_code_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": RunsCode()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="may hold only tensors"):
        Phi3VModel.from_pretrained(folder)
    assert not Path("/tmp/should-not-exist").exists()


def test_alias_of_the_token_embedding(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    tensors = {ALIAS if name == EMBEDDINGS else name: tensor for name, tensor in weights.items()}
    save_tensors(folder, tensors)
    check_loads(folder, weights)


def test_missing_and_unexpected_tensors(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    norm = "model.norm.weight"
    save_tensors(folder, {name: tensor for name, tensor in weights.items() if name != norm})
    with pytest.raises(InputError, match=r"1 missing \(model\.norm\.weight\)"):
        Phi3VModel.from_pretrained(folder)
    save_tensors(folder, {**weights, "model.extra.weight": weights[norm]})
    with pytest.raises(InputError, match=r"1 unexpected \(model\.extra\.weight\)"):
        Phi3VModel.from_pretrained(folder)
    save_tensors(folder, {**weights, norm: weights[norm][:-1]})
    with pytest.raises(InputError, match=r"model\.norm\.weight has shape \[63\]"):
        Phi3VModel.from_pretrained(folder)


def test_hidden_size_of_old_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 4096}))
    with pytest.raises(InputError, match=r"hidden_size is 4096 but the weights are 64 wide.*set hidden_size to 64"):
        Phi3VModel.from_pretrained(folder)


def test_damaged_files(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(InputError, match="damaged weight file"):
        Phi3VModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        Phi3VModel.from_pretrained(folder)
    with pytest.raises(InputError, match="not a file"):
        Phi3VModel.from_pretrained(folder / "config.json")
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match='"llama"'):
        Phi3VModel.from_pretrained(folder)


def test_an_index_may_not_leave_the_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="outside the folder"):
        Phi3VModel.from_pretrained(folder)


def test_published_configuration() -> None:
    """Microsoft's file: rope type "su", a demand for flash-attention, no vision tower; and it is written back so."""
    written = json.loads((golden.ROOT / "phi35v_full_size_config.json").read_text())
    config = Phi3VConfig.from_dict(written)
    assert config._attn_implementation != "flash_attention_2"
    assert config.rope_parameters["rope_type"] == "longrope"
    assert (config.vision_config.num_hidden_layers, config.vision_config.image_size) == (24, 336)
    assert config.view_grid == 12
    saved = json.loads(config.to_json_string())
    assert "vision_config" not in saved
    for key in ("rope_scaling", "rope_theta", "original_max_position_embeddings", "sliding_window", "img_processor"):
        assert saved[key] == written[key], key
    assert json.loads(Phi3VConfig.from_dict(saved).to_json_string()) == saved


def test_longrope_is_the_same_as_su() -> None:
    written = json.loads((golden.ROOT / "phi35v_full_size_config.json").read_text())
    renamed = {**written, "rope_scaling": {**written["rope_scaling"], "type": "longrope"}}
    assert Phi3VConfig.from_dict(renamed).rope_parameters == Phi3VConfig.from_dict(written).rope_parameters
    with pytest.raises(ValueError, match="yarn"):
        Phi3VConfig.from_dict({**written, "rope_scaling": {**written["rope_scaling"], "type": "yarn"}})


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 123456\n"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"])
def test_git_lfs_pointers_are_named(golden_model_dir: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(golden_model_dir, tmp_path / "model")
    (folder / name).write_bytes(LFS_POINTER)
    with pytest.raises(InputError, match=rf"{name}: a Git LFS pointer, .*git lfs pull.*hf download"):
        VLM2Vec.from_pretrained(folder)


def test_git_lfs_pointers_of_adapters_are_named(golden_model_dir: Path, tmp_path: Path) -> None:
    encoder = VLM2Vec.from_pretrained(golden_model_dir)
    encoder.add_lora(LoraSettings(r=2))
    encoder.save_pretrained(tmp_path)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(LFS_POINTER)
        with pytest.raises(InputError, match=rf"{name}: a Git LFS pointer"):
            VLM2Vec.from_pretrained(tmp_path)
        with pytest.raises(InputError, match=rf"{name}: a Git LFS pointer"):
            VLM2Vec.from_pretrained(golden_model_dir, adapter=tmp_path)
        (tmp_path / name).write_bytes(content)


def test_output_of_a_training_run_must_be_exported_first(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoint-8"
    for part in ("encoder", "engine", "ranks"):
        (checkpoint / part).mkdir(parents=True)
    (checkpoint / "run.json").touch()
    (tmp_path / "run" / "latest").write_text("checkpoint-8")
    (checkpoint / "engine" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    for folder, run in (
        (tmp_path / "run", tmp_path / "run"),
        (checkpoint, checkpoint),
        (checkpoint / "encoder", checkpoint),
        (checkpoint / "engine", checkpoint),
    ):
        with pytest.raises(InputError) as refusal:
            VLM2Vec.from_pretrained(folder)
        expected = (
            f"{folder}: belongs to a training run, not a model; export it first: python -m vlm2vec.export {run} OUT"
        )
        assert str(refusal.value) == expected
    elsewhere = shutil.copytree(checkpoint / "engine", tmp_path / "copy" / "global_step8")
    for folder in (elsewhere, elsewhere.parent):
        with pytest.raises(InputError, match="a raw ZeRO checkpoint, not a model; export it first"):
            VLM2Vec.from_pretrained(folder)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({}, "weight_map is missing"),
        ({"weight_map": ["a"]}, "weight_map is "),
        ({"weight_map": {"a": 3}}, "weight_map.a is 3; "),
        ({"weight_map": {"a": "../b"}}, "outside the folder"),
        ({"weight_map": {"a": "b"}}, "shard b is missing"),
    ],
)
def test_damaged_weight_indexes(golden_model_dir: Path, tmp_path: Path, index: object, said: str) -> None:
    folder = shutil.copytree(golden_model_dir, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=said):
        VLM2Vec.from_pretrained(folder)
