"""Image tags, token ids and batches compared with the reference and the real tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.rig import golden
from vlm2vec.backbones.phi3_v import Phi3VImageProcessor, Phi3VProcessor, collate_items
from vlm2vec.errors import InputError

CASES = golden.read("processor/cases.json")["cases"]
IMAGE = Image.new("RGB", (40, 30), "white")


@pytest.fixture(scope="module")
def processor(golden_model_dir: Path) -> Phi3VProcessor:
    return Phi3VProcessor.from_pretrained(golden_model_dir, num_crops=1)


@pytest.fixture(scope="module")
def real_processor(golden_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Phi3VProcessor:
    """Phi-3.5's own tokenizer, with the small one's settings (the same but for the ids of the added tokens)."""
    folder = tmp_path_factory.mktemp("real")
    shutil.copy(golden.ROOT / "phi35v_real_tokenizer.json", folder / "tokenizer.json")
    settings = json.loads((golden_model_dir / "tokenizer_config.json").read_text())
    del settings["added_tokens_decoder"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Phi3VProcessor.from_pretrained(folder, num_crops=4)


def test_texts(processor: Phi3VProcessor) -> None:
    for entry in golden.read("tokenization.json"):
        assert processor.tokenize(entry["text"], (), entry["max_length"]) == entry["input_ids"], entry["text"]


def test_real_tokenizer(real_processor: Phi3VProcessor) -> None:
    expected = json.loads((golden.ROOT / "phi35v_real_tokenizer_ids.json").read_text())
    for entry in expected["text"]:
        assert real_processor.tokenize(entry["text"]) == entry["input_ids"], entry["text"]
    for entry in expected["image_prompts_text_chunks"]:
        before, after = entry["chunks"]
        assert real_processor.tokenize(entry["text"], [2]) == [*before, -1, -1, *after], entry["text"]


def test_real_chat_prompt_lengths(real_processor: Phi3VProcessor) -> None:
    """Figures noted in another port's tests: 4 and 16 crops of a square image."""
    prompt = "<|user|>\n<|image_1|>\nDescribe this image.<|end|>\n<|assistant|>\n"
    for num_crops, length in ((4, 773), (16, 2525)):
        tokens = Phi3VImageProcessor(num_crops).layout(500, 500).num_tokens
        assert len(real_processor.tokenize(prompt, [tokens])) == length


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_image_prompts(golden_model_dir: Path, case: dict[str, Any]) -> None:
    processor = Phi3VProcessor.from_pretrained(golden_model_dir, num_crops=case["num_crops"])
    output = processor(case["text"], [golden.image(case["image"])])
    assert torch.equal(output["input_ids"], golden.tensors(f"processor/{case['case']}.safetensors")["input_ids"])
    assert output["image_sizes"].tolist() == case["image_sizes_hw"]
    assert output["num_img_tokens"] == case["num_img_tokens"]
    assert list(output["pixel_values"].shape) == case["pixel_values_shape"]
    width, height = case["image_size_wh"]
    assert processor.num_image_tokens(width, height) == case["num_img_tokens"][0]
    assert processor.num_vision_units(width, height) == case["real_crops_incl_global"]


def test_max_len_spares_items_with_images(processor: Phi3VProcessor) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    assert processor("<|image_1|> " + text, [IMAGE], max_len=6)["input_ids"].shape[1] > 313
    assert processor(text, max_len=6)["input_ids"].shape == (1, 6)


def test_a_stray_tag_is_text(processor: Phi3VProcessor) -> None:
    ids = processor("<|image_1|>\nA dog", None)["input_ids"][0]
    assert (ids > 0).all()
    assert len(ids) > processor("\nA dog")["input_ids"].shape[1]


def test_an_image_without_text_gets_the_default_prompt(processor: Phi3VProcessor) -> None:
    without, prompted = processor("", IMAGE), processor("<|image_1|> Represent the given image.", IMAGE)
    assert torch.equal(without["input_ids"], prompted["input_ids"])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("no tag", 1),
        (" ", 1),
        ("", 2),
        ("<|image_2|>", 1),
        ("<|image_1|>", 2),
        ("<|image_1|> <|image_1|>", 1),
        ("<|image_1|> <|image_1|>", 2),
        ("<|image_1|> <|image_3|>", 2),
    ],
)
def test_tags_that_do_not_fit_are_refused(processor: Phi3VProcessor, text: str, count: int) -> None:
    with pytest.raises(InputError, match=rf"{count} image"):
        processor(text, [IMAGE] * count)


def test_several_images(processor: Phi3VProcessor) -> None:
    output = processor("a <|image_2|> b <|image_1|>", [IMAGE, IMAGE])
    ids = output["input_ids"][0].tolist()
    assert ids.count(-1) == ids.count(-2) == 313
    assert ids.index(-2) < ids.index(-1)
    assert output["pixel_values"].shape == (2, 2, 3, 336, 336)


def test_collate(processor: Phi3VProcessor) -> None:
    items = [processor.process_item("A dog"), processor.process_item("<|image_1|> A", [IMAGE])]
    batch: dict[str, Any] = {**collate_items(items, processor.pad_token_id)}
    lengths = [len(item.input_ids) for item in items]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert batch["input_ids"][0, lengths[0] :].unique().tolist() == [600]
    assert batch["pixel_values"].shape == (2, 3, 336, 336)
    assert collate_items(items[:1], 600)["pixel_values"] is None


def test_num_crops_is_never_guessed(golden_model_dir: Path, tmp_path: Path) -> None:
    assert Phi3VProcessor.from_pretrained(golden_model_dir).num_crops == 4
    folder = tmp_path / "bare"
    shutil.copytree(golden_model_dir, folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="num_crops"):
        Phi3VProcessor.from_pretrained(folder)
    assert Phi3VProcessor.from_pretrained(folder, num_crops=9).num_crops == 9


def test_save_keeps_every_id(real_processor: Phi3VProcessor, tmp_path: Path) -> None:
    real_processor.save_pretrained(tmp_path)
    again = Phi3VProcessor.from_pretrained(tmp_path)
    for entry in json.loads((golden.ROOT / "phi35v_real_tokenizer_ids.json").read_text())["text"]:
        assert again.tokenize(entry["text"]) == entry["input_ids"]
    assert (again.num_crops, again.pad_token_id) == (4, 32000)


def test_missing_and_damaged_files(golden_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Phi3VProcessor.from_pretrained(tmp_path, num_crops=1)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="damaged tokenizer"):
        Phi3VProcessor.from_pretrained(tmp_path, num_crops=1)


def test_the_tokenizers_files_are_kept_word_for_word(tmp_path: Path) -> None:
    """transformers 5 would write a class that 4 cannot open, and rebuild tokenizer.json."""
    source = golden.write_model_folder(tmp_path / "source")
    (source / "added_tokens.json").write_text('{"a": 1}  \n')
    processor = Phi3VProcessor.from_pretrained(source)
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    expected = {name: (source / name).read_bytes() for name in names}
    shutil.rmtree(source)  # as a folder may be gone at the end of a long run
    processor.save_pretrained(tmp_path / "saved")
    assert {name: (tmp_path / "saved" / name).read_bytes() for name in names} == expected
    Phi3VProcessor(processor.tokenizer, processor.image_processor).save_pretrained(tmp_path / "made")
    config = json.loads((tmp_path / "made" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "backend" not in config
    assert Phi3VProcessor.from_pretrained(tmp_path / "made").tokenize("a b") == processor.tokenize("a b")


def test_remembered_texts_have_the_ids_of_the_tokenizer(
    real_processor: Phi3VProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether asked for the first or second time, cut or whole; what is handed out may be changed."""
    module = "vlm2vec.backbones.phi3_v.processor"
    monkeypatch.setattr(real_processor, "_ids_of_text", {})
    monkeypatch.setattr(f"{module}._REMEMBERED_TEXTS", 2)
    texts = ["a cat", "a dog on a mat", "one too many", "long " * 100]
    expected = {text: real_processor.tokenizer.backend_tokenizer.encode(text).ids for text in texts}
    for max_len in (None, 2, 3):
        for text in texts:
            ids = real_processor.tokenize(text, (), max_len)
            assert ids == expected[text][:max_len]
            ids.append(-7)
    with_image = real_processor.tokenize("<|image_1|>a cat", [3])
    assert with_image[-len(expected["a cat"]) :] == expected["a cat"]
    assert list(real_processor._ids_of_text) == texts[:2]
