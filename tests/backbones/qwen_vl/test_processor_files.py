"""Files of the three processors, and the prompt format that a folder has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.rig import qwen_golden
from tests.rig.qwen_processors import PROCESSORS, copied, load
from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.backbones.qwen_vl.items.families import Qwen2VLProcessor
from vlm2vec.backbones.qwen_vl.items.formats import FORMATS, format_limits, recognised_format
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import checked

IMAGE_PAD = "<|image_pad|>"


@pytest.mark.parametrize("family", qwen_golden.FAMILIES)
def test_limits(family: str, tmp_path: Path) -> None:
    """Flags first; then a folder's own choice; what all published files say is none, and gives way to the format's."""
    factor = 32 if family == "qwen3_vl" else 28
    for name, (least, most) in {"vlm2vec": (4, 1280), "qwen3_vl_embedding": (4, 1800), "gme": (256, 1280)}.items():
        assert load(family, name).image_limits == {"min_pixels": least * factor**2, "max_pixels": most * factor**2}
    assert load(family, "vlm2vec", max_pixels=50_000).image_limits["max_pixels"] == 50_000
    own = FORMATS["chat"].model_copy(update={"resize": "gme"})
    folder = qwen_golden.model_folder(family)
    assert PROCESSORS[family].from_pretrained(folder, own).image_limits == PROCESSORS[family].published.limits
    spellings: list[dict[str, Any]] = [
        {"min_pixels": 5000, "max_pixels": 60_000, "size": "absent"},
        {"min_pixels": "absent", "max_pixels": None, "size": {"shortest_edge": 5000, "longest_edge": 60_000}},
        {"min_pixels": "absent", "max_pixels": "absent", "size": {"min_pixels": 5000, "max_pixels": 60_000}},
    ]
    for number, spelling in enumerate(spellings):
        changed = copied(family, tmp_path / str(number), **spelling)
        processor = PROCESSORS[family].from_pretrained(changed, FORMATS["vlm2vec"])
        assert processor.image_limits == {"min_pixels": 5000, "max_pixels": 60_000}


@pytest.mark.parametrize("family", qwen_golden.FAMILIES)
def test_a_saved_processor_is_the_same(family: str, tmp_path: Path) -> None:
    """Tokenizer files word for word, and settings that transformers reads."""
    processor = load(family, "chat", min_pixels=5000, max_pixels=70_000)
    processor.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
        assert (tmp_path / name).read_bytes() == (qwen_golden.model_folder(family) / name).read_bytes()
    again = PROCESSORS[family].from_pretrained(tmp_path, FORMATS["chat"])
    assert again.image_processor.settings == processor.image_processor.settings
    assert again.table == processor.table
    theirs = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(theirs, Qwen2VLImageProcessorPil)
    image = qwen_golden.image(family, "images/odd.png")
    assert torch.equal(
        theirs(images=[image], return_tensors="pt")["pixel_values"], processor.image_processor.pixel_values(image)
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_pixels": "5"}, 'min_pixels is "5"'),
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"min_pixels": 9000, "max_pixels": 8000}, "max_pixels 8000 is less than min_pixels 9000"),
        ({"size": {"height": 5, "width": 5}}, "size.height is not a setting"),
        ({"size": {"longest_edge": 1 << 40}}, "size.longest_edge is"),
        ({"patch_size": 8}, "patch_size is 8, the model's is 14"),
        ({"image_processor_type": "CLIPImageProcessor"}, 'image_processor_type is "CLIPImageProcessor"'),
        ({"merge_size": 3}, "merge_size is 3"),
        ({"temporal_patch_size": 1}, "temporal_patch_size is 1"),
        ({"image_mean": [0.5]}, "image_mean is"),
        ({"image_std": [0.5, 0.5, 0.0]}, "image_std.2 is 0.0"),
        ({"resample": 2}, "resample is 2"),
        ({"do_resize": False}, "do_resize is false"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
    ],
)
def test_damaged_settings_are_refused(setting: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = copied("qwen2_vl", tmp_path / "model", **setting)
    with pytest.raises(InputError, match=rf"preprocessor_config.json: {message}") as caught:
        Qwen2VLProcessor.from_pretrained(folder, FORMATS["vlm2vec"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("family", "field"), [("qwen2_5_vl", "window_size"), ("qwen3_vl", "num_position_embeddings")])
def test_files_that_contradict_each_other_are_refused(family: str, field: str, tmp_path: Path) -> None:
    folder = copied(family, tmp_path / "model", **{field: 400})
    with pytest.raises(InputError, match=rf"preprocessor_config.json: {field} is 400, the model's is 1[14][24]"):
        PROCESSORS[family].from_pretrained(folder, FORMATS["chat"])


def test_limits_of_others_are_refused() -> None:
    with pytest.raises(InputError, match=r"num_crops: a qwen2_vl has no such limit.* min_pixels, max_pixels"):
        load("qwen2_vl", num_crops=4)


def test_a_tokenizer_without_images_is_refused(tmp_path: Path) -> None:
    folder = copied("qwen2_vl", tmp_path / "model")
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace(IMAGE_PAD, "<|image|>"))
    (folder / "tokenizer_config.json").write_text(
        (folder / "tokenizer_config.json").read_text().replace(IMAGE_PAD, "<|image|>")
    )
    with pytest.raises(InputError, match=r"the tokenizer has no token <\|image_pad\|>"):
        Qwen2VLProcessor.from_pretrained(folder, FORMATS["vlm2vec"])


# --- Formats ---


def test_formats_are_valid() -> None:
    for name, each in FORMATS.items():
        assert checked(PromptFormat, json.loads(json.dumps(each.model_dump())), name) == each
        assert each.name == name
        assert format_limits(each.model_copy(update={"name": "mine"}), 28)
        Qwen2VLProcessor.check_format(each)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": ""}, r"image is \"\"; it needs <\|image_pad\|> exactly once"),
        ({"image": 2 * IMAGE_PAD}, "image is .* exactly once"),
        ({"template": f"{IMAGE_PAD}{{content}}"}, r"template holds <\|image_pad\|>"),
        ({"resize": ""}, r'resize is ""; a qwen2_vl has vlm2vec, '),
    ],
)
def test_impossible_formats_are_refused(changed: dict[str, Any], message: str) -> None:
    mine = checked(PromptFormat, FORMATS["vlm2vec"].model_dump() | {"name": "mine", **changed}, "mine")
    with pytest.raises(InputError, match=f"prompt format 'mine': {message}"):
        Qwen2VLProcessor.check_format(mine)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen2-VL-2B-Instruct", "chat"),
        ("models--Qwen--Qwen3-VL-30B-A3B-Instruct/snapshots/0a1b", "chat"),
        ("models--Qwen--Qwen3-VL-Embedding-2B/snapshots/0a1b", "qwen3_vl_embedding"),
        ("models--Alibaba-NLP--gme-Qwen2-VL-7B-Instruct/snapshots/0a1b", "gme"),
        ("models--VLM2Vec--VLM2Vec-V2.0/snapshots/0a1b", "vlm2vec"),
        ("models--TIGER-Lab--VLM2Vec-Qwen2VL-7B/snapshots/0a1b", "vlm2vec_v1"),
        ("Qwen2-VL-2B-Instruct/mine", None),
        ("my-Qwen2-VL-2B-Instruct", None),
        ("model", None),
    ],
)
def test_folders_are_recognised_by_name(name: str, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / name).mkdir(parents=True)
    assert recognised_format(tmp_path / name) == expected


def test_folders_are_recognised_by_files(tmp_path: Path) -> None:
    def adapter(library: str) -> None:
        content = {"auto_mapping": {"parent_library": library}, "peft_type": "LORA"}
        (tmp_path / "adapter_config.json").write_text(json.dumps(content))

    adapter("src.model.vlm_backbone.qwen2_vl.modeling_qwen2_vl")
    assert recognised_format(tmp_path) == "vlm2vec"
    adapter("src.vlm_backbone.qwen2_vl.modeling_qwen2_vl")
    assert recognised_format(tmp_path) == "vlm2vec_v1"
    adapter("transformers.models.qwen2_vl.modeling_qwen2_vl")
    assert recognised_format(tmp_path) is None
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "qwen3_vl_embedding.py").touch()
    assert recognised_format(tmp_path) == "qwen3_vl_embedding"


def test_a_folder_that_says_nothing_asks_for_the_format() -> None:
    with pytest.raises(
        InputError,
        match=r"pass prompt_format \(--prompt_format\), one of vlm2vec, vlm2vec_v1, chat, qwen3_vl_embedding, gme",
    ):
        Qwen2VLProcessor.from_pretrained(qwen_golden.model_folder("qwen2_vl"))
