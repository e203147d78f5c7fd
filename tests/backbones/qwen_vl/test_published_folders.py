"""Folders as Qwen-VL embedding models are published, without vlm2vec_config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.rig import golden, qwen_golden
from tests.rig.qwen_items import encode_arguments, items_of
from tests.rig.qwen_models import MODELS, copied, loaded
from trials.rig.launcher import REPOSITORY
from vlm2vec import VLM2Vec
from vlm2vec.backbones.checkpoint import resolve_folder
from vlm2vec.backbones.registry import family_named
from vlm2vec.choices import LoraSettings
from vlm2vec.errors import InputError
from vlm2vec.lora import add_adapter
from vlm2vec.model_folder.adapter_files import write_adapter_config, write_adapter_weights
from vlm2vec.plan.run_plan import read_plan

FAMILY = "qwen2_vl"
HUB_NAME = "Qwen/Qwen2-VL-2B-Instruct"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model that the adapters name, as the hub's cache would have it."""
    folder = copied(FAMILY, tmp_path / "base")

    def resolve(path: str | Path) -> Path:
        return folder if str(path) == HUB_NAME else resolve_folder(path)

    for module in ("model_folder.loading", "backbones.interface"):  # files, and weights
        monkeypatch.setattr(f"vlm2vec.{module}.resolve_folder", resolve)
    return folder


def adapter_folder(folder: Path, maker: str) -> Path:
    """An adapter's files as TIGER-Lab publishes them: a pickle, and copies of the base's small files."""
    folder.mkdir(exist_ok=True)
    for file in qwen_golden.model_folder(FAMILY).iterdir():
        if file.name != "model.safetensors":
            shutil.copyfile(file, folder / file.name)
    source = golden.ROOT / FAMILY / "lora"
    config = json.loads((source / "adapter_config.json").read_text())
    config |= {"auto_mapping": {"base_model_class": "Qwen2VLForConditionalGeneration", "parent_library": maker}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save(load_file(source / "adapter_model.safetensors"), folder / "adapter_model.bin")
    return folder


def vectors(encoder: VLM2Vec, **options: Any) -> torch.Tensor:
    items = items_of(FAMILY, qwen_golden.read(FAMILY, "lora/cases.json")["query"])
    return encoder.encode(**encode_arguments(items), **options)


@qwen_golden.RESIZED
def test_an_adapter_that_names_its_base(base: Path, tmp_path: Path) -> None:
    """Whatever the neighbours, its vectors are the reference's."""
    folder = adapter_folder(tmp_path / "adapter", "src.model.vlm_backbone.qwen2_vl.modeling_qwen2_vl")
    encoder = VLM2Vec.from_pretrained(folder, dtype=torch.float32)
    assert encoder.processor.prompt_format.name == "vlm2vec"
    expected = qwen_golden.tensors(FAMILY, "lora/expected.safetensors")["query.adapter"]
    for batch_tokens in (1, 100_000):
        assert (vectors(encoder, batch_tokens=batch_tokens) - expected).abs().max() < golden.EMBEDDING_LIMIT


def test_an_adapter_of_the_older_code(base: Path, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "adapter", "src.vlm_backbone.qwen2_vl.modeling_qwen2_vl")
    encoder = VLM2Vec.from_pretrained(folder)
    assert encoder.processor.prompt_format.name == "vlm2vec_v1"
    assert encoder.processor.num_image_tokens(640, 480) == (1344 // 28) ** 2


def test_a_folder_with_an_adapter_and_the_merged_model(base: Path, tmp_path: Path) -> None:
    both = adapter_folder(tmp_path / "both", "src.vlm_backbone.qwen2_vl.modeling_qwen2_vl")
    weights = load_file(base / "model.safetensors")
    torch.save(weights, both / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds an adapter and a whole model; for the adapter, pass its base as path"):
        VLM2Vec.from_pretrained(both)
    found = VLM2Vec.from_pretrained(base, both).encode(["a text"])
    assert torch.equal(
        found, VLM2Vec.from_pretrained(adapter_folder(tmp_path / "one", "src.vlm_backbone.")).encode(["a text"])
    )
    for name in ("adapter_config.json", "adapter_model.bin"):
        (both / name).unlink()
    merged = VLM2Vec.from_pretrained(both, prompt_format="vlm2vec_v1").encode(["a text"])
    assert not torch.equal(found, merged)


def test_a_base_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = adapter_folder(tmp_path / "adapter", "src.vlm_backbone.qwen2_vl")
    with pytest.raises(InputError) as caught:
        VLM2Vec.from_pretrained(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'adapter_config.json'}: its base model was not found ({HUB_NAME}: ")
    assert message.endswith("pass the base as path and this as adapter")
    assert "\n" not in message


def test_a_pickle_that_holds_more_than_tensors(base: Path, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "adapter", "src.vlm_backbone.qwen2_vl")
    torch.save({"a": Path("x")}, folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model.bin: refused, a pickle may hold only tensors"):
        VLM2Vec.from_pretrained(folder)


def test_an_adapter_of_another_family(tmp_path: Path) -> None:
    other = copied("qwen2_5_vl", tmp_path / "other")
    said = (
        r"adapter_model.safetensors: the adapter does not fit the model: 36 of 120 tensors differ \(36 missing\), first"
    )
    with pytest.raises(InputError, match=said):
        VLM2Vec.from_pretrained(other, golden.ROOT / FAMILY / "lora", prompt_format="vlm2vec")


def test_an_adapter_of_another_size(tmp_path: Path) -> None:
    """Every tensor is counted once, and the kinds of differences add up."""
    small = add_adapter(loaded(FAMILY), LoraSettings(r=2, target_modules=["q_proj"]))
    large = copied("qwen3_vl", tmp_path / "other")
    write_adapter_config(small, tmp_path)
    write_adapter_weights(small, tmp_path)
    count = len(load_file(tmp_path / "adapter_model.safetensors"))
    said = (
        rf"{2 * count} of {2 * count} tensors differ \({count} missing, {count} unknown to the model\), first base_mod"
    )
    with pytest.raises(InputError, match=said):
        VLM2Vec.from_pretrained(large, tmp_path, prompt_format="chat")


def test_an_embedding_model_is_known_by_its_name(tmp_path: Path) -> None:
    folder = copied("qwen3_vl", tmp_path / "Qwen3-VL-Embedding-2B")
    encoder = VLM2Vec.from_pretrained(folder)
    assert encoder.processor.prompt_format.name == "qwen3_vl_embedding"
    assert encoder.processor.image_limits == {"min_pixels": 4 * 32**2, "max_pixels": 1800 * 32**2}


# What the names of published models tell: how prompts are made, most tokens of an image, and the decoder's width.
PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": ("chat", 1280, 1536),
    "Qwen/Qwen2-VL-7B-Instruct": ("chat", 1280, 3584),
    "TIGER-Lab/VLM2Vec-Qwen2VL-2B": ("vlm2vec_v1", 16384, 1536),
    "TIGER-Lab/VLM2Vec-Qwen2VL-7B": ("vlm2vec_v1", 16384, 3584),
    "VLM2Vec/VLM2Vec-V2.0": ("vlm2vec", 1280, 1536),
    "raghavlite/B3_Qwen2_2B": ("vlm2vec", 1280, 1536),
    "raghavlite/B3_Qwen2_7B": ("vlm2vec", 1280, 3584),
    "Alibaba-NLP/gme-Qwen2-VL-2B-Instruct": ("gme", 1280, 1536),
    "Alibaba-NLP/gme-Qwen2-VL-7B-Instruct": ("gme", 1280, 3584),
    "Qwen/Qwen2.5-VL-3B-Instruct": ("chat", 1280, 2048),
    "Qwen/Qwen3-VL-2B-Instruct": ("chat", 1280, 2048),
    "Qwen/Qwen3-VL-8B-Instruct": ("chat", 1280, 4096),
    "Qwen/Qwen3-VL-Embedding-2B": ("qwen3_vl_embedding", 1800, 2048),
    "Qwen/Qwen3-VL-Embedding-8B": ("qwen3_vl_embedding", 1800, 4096),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_planned_by_their_names(name: str) -> None:
    run = ["--dataset_name", "d", "--output_dir", "o", "--global_batch_size", "8", "--max_steps", "1"]
    engine = str(REPOSITORY / "ds_configs/zero2.json")
    plan = read_plan(["--model_name", name, "--deepspeed", engine, *run])
    prompt_format, tokens, width = PUBLISHED[name]
    processor = plan.model.processor
    assert processor.prompt_format.name == prompt_format
    assert processor.image_limits["max_pixels"] == tokens * (2 * processor.patch_size) ** 2  # type: ignore[attr-defined]
    assert plan.model.config.text_config.hidden_size == width


def test_every_shipped_name_is_tested() -> None:
    assert set(PUBLISHED) == {name for family in MODELS for name in family_named(family, "test").published_configs}
