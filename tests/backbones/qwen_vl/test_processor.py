"""Tokens, prompts and model arguments of the three processors compared with the reference."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from tests.rig import golden, qwen_golden
from tests.rig.qwen_items import FORMATS as OWN_FORMAT
from tests.rig.qwen_models import loaded
from tests.rig.qwen_processors import PROCESSORS, copied, load
from vlm2vec.backbones.interface import CollatedItems, ProcessedItem
from vlm2vec.backbones.qwen_vl.items.families import Qwen3VLProcessor
from vlm2vec.backbones.qwen_vl.items.formats import FORMATS
from vlm2vec.backbones.qwen_vl.items.positions import interpolation, patch_positions, windows
from vlm2vec.backbones.qwen_vl.items.processor import QwenVLProcessor
from vlm2vec.errors import InputError

IMAGE_PAD = "<|image_pad|>"
CASES = [
    (family, case)
    for family in qwen_golden.FAMILIES
    for case in qwen_golden.read(family, "model_cases/cases.json")["cases"]
]
SMALL = Image.new("RGB", (56, 56), "red")


def neutral(text: str) -> str:
    """A text with our tags in the place of the reference's image tokens."""
    pieces = re.split(r"(?:<\|vision_start\|>)?<\|image_pad\|>(?:<\|vision_end\|>)?", text)
    return "".join(piece + f"<|image_{number}|>" for number, piece in enumerate(pieces[:-1], 1)) + pieces[-1]


def items_of(processor: QwenVLProcessor, family: str, case: dict[str, Any]) -> list[ProcessedItem]:
    """The items of a case, through the prompt format that makes its prompts."""
    if family == "qwen3_vl":
        made = []
        for item in case["items"]:
            names = item.get("image") or []
            images = [qwen_golden.image(family, name) for name in ([names] if isinstance(names, str) else names)]
            text = item.get("text") or ""
            text = text if isinstance(text, str) else "".join(text)
            made.append(processor.process_item(text, images, instruction=item.get("instruction")))
        return made
    made = []
    for text, names in zip(case["texts"], case["images"], strict=True):
        images = [qwen_golden.image(family, name) for name in names or ()]
        instruction, content = None, text
        if processor.prompt_format.takes_instruction:
            found = re.fullmatch(
                r"<\|im_start\|>system\n(.*)<\|im_end\|>\n<\|im_start\|>user\n(.*)<\|im_end\|>.*", text, re.S
            )
            assert found
            instruction, content = found.groups()
        made.append(processor.process_item(neutral(content), images, instruction=instruction))
    return made


@pytest.mark.parametrize(("family", "case"), CASES, ids=[f"{family}-{case['case']}" for family, case in CASES])
@qwen_golden.RESIZED
def test_cases_of_the_reference(family: str, case: dict[str, Any]) -> None:
    """From texts and images to ids, positions, grids and embeddings; the padding is ours, on the right."""
    name = OWN_FORMAT[family]
    if case["case"].startswith(("mrope", "gme")):
        name = "chat" if case["case"].startswith("mrope") else "gme"
    limits = {"min_pixels": 3136, "max_pixels": 1003520} if family != "qwen3_vl" else {}
    processor = load(family, name, **limits)
    items = items_of(processor, family, case)
    collated = processor.collate(items, sum(item.vision_units for item in items), torch.float32)
    expected = qwen_golden.tensors(family, case["file"])
    if case["case"] != "big":  # seconds
        with torch.no_grad():
            hidden = loaded(family)(**collated.tensors, **collated.host_values)
        last = collated.tensors["attention_mask"].sum(1) - 1
        vectors = torch.nn.functional.normalize(hidden[torch.arange(len(hidden)), last], dim=-1)
        assert (vectors - expected["embedding"]).abs().max() <= golden.EMBEDDING_LIMIT
    ids, mask = collated.tensors["input_ids"], collated.tensors["attention_mask"].bool()
    for row, (their_ids, their_mask) in enumerate(
        zip(expected["input_ids"], expected["attention_mask"].bool(), strict=True)
    ):
        assert torch.equal(ids[row][mask[row]], their_ids[their_mask])
        theirs = expected["position_ids"][:, row, their_mask]
        assert torch.equal(collated.tensors["position_ids"][:, row, mask[row]], theirs)
    if family == "qwen3_vl":
        rendered = [
            processor.prompt_format.render(
                item.get("text", "") if isinstance(item.get("text", ""), str) else "".join(item["text"]),
                len([item["image"]] if isinstance(item.get("image"), str) else item.get("image", [])),
                item.get("instruction"),
            )
            for item in case["items"]
        ]
        image = processor.prompt_format.image
        assert [re.sub(r"<\|image_\d+\|>", image, text) for text in rendered] == case["prompts"]
    grids = [grid for item in items for grid in item.host_values.get("image_grids", ())]
    assert [[1, *grid] for grid in grids] == expected.get("image_grid_thw", torch.empty(0, 3)).int().tolist()


@pytest.mark.parametrize("family", qwen_golden.FAMILIES)
def test_texts_of_the_reference(family: str) -> None:
    """Texts that are prompts already, as they are: special tokens in them are special tokens."""
    processor = load(family, "vlm2vec")
    for entry in qwen_golden.read(family, "tokenization.json"):
        text, max_length, expected = entry["text"], entry["max_length"], entry["input_ids"]
        images = text.count(IMAGE_PAD)
        text = re.sub(re.escape(IMAGE_PAD), iter_tags(), text)
        ids = processor.tokenize(text, [1] * images, max_length)
        if not text:
            assert expected == []
            expected = [processor.pad_token_id]  # chunks that stand for none have such an item
        assert ids == expected, entry["text"]


def iter_tags() -> Any:
    numbers = iter(range(1, 100))
    return lambda _: f"<|image_{next(numbers)}|>"


def test_truncation_of_the_reference() -> None:
    """Ours keeps the whole template and cuts the text; Qwen3-VL-Embedding's keeps special tokens alone.

    Its helper loses the template's last words ("assistant") and, for short limits, the instruction before the text, so
    that the two agree in what is kept of the text's beginning only.
    """
    processor = load("qwen3_vl")
    text = (
        "The quick brown fox jumps over the lazy dog."
        + ' In 1984, 3.5% of the users said: it\'s "fine"\n\nBut was it?  \t'
    )
    entries = qwen_golden.read("qwen3_vl", "truncation.json")
    for entry in entries:
        whole = entry["input_ids"]
        assert processor.tokenize(text) == whole
        content = whole[19:-7]
        template = [*whole[:19], *whole[-7:]]
        assert len(processor.tokenize(text, max_len=entry["max_length"])) == max(len(template), entry["max_length"])
        for kept in (0, 1, 7, len(content)):
            assert processor.tokenize(text, max_len=len(template) + kept) == [*whole[:19], *content[:kept], *whole[-7:]]
    longest = entries[-1]
    theirs = longest["truncated_keeping_special"]
    assert theirs[:28] == whole[:28]
    assert theirs[28:] == [token for token in whole[19:] if token in (1501, 1502)]


def test_items_with_images_are_not_truncated() -> None:
    processor = load("qwen2_vl")
    text = "<|image_1|> The quick brown fox jumps over the lazy dog."
    assert processor.tokenize(text, [9], max_len=5) == processor.tokenize(text, [9])


def test_images_in_any_order() -> None:
    """Features take the places of their own tags."""
    processor = load("qwen2_vl", "chat", min_pixels=3136, max_pixels=1003520)
    wide, tall = Image.new("RGB", (112, 56), "red"), Image.new("RGB", (56, 112), "blue")
    straight = processor.process_item("a <|image_1|> b <|image_2|> c", [wide, tall])
    crossed = processor.process_item("a <|image_2|> b <|image_1|> c", [tall, wide])
    assert straight.input_ids.tolist() == crossed.input_ids.tolist()
    assert straight.host_values == crossed.host_values == {"image_grids": ((4, 8), (8, 4))}
    assert torch.equal(straight.tensors["image_patches"], crossed.tensors["image_patches"])


@pytest.mark.parametrize("family", qwen_golden.FAMILIES)
def test_the_image_token_in_a_text_is_refused(family: str) -> None:
    processor = load(family)
    for text, images in ((f"a {IMAGE_PAD}", 0), (f"<|image_1|> {IMAGE_PAD}", 1)):
        with pytest.raises(InputError, match=r"write <\|image_1\|> where an image belongs"):
            processor.tokenize(text, [4] * images)


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InputError, match="half of a surrogate pair"):
        load("qwen2_vl").tokenize("a \ud83d")


# --- The arguments of the forward ---


def chunk(processor: QwenVLProcessor, dtype: torch.dtype = torch.float32) -> tuple[list[ProcessedItem], CollatedItems]:
    """Texts and images of several sizes, two of them alike."""
    big, small = Image.effect_noise((200, 150), 90).convert("RGB"), Image.effect_noise((60, 90), 90).convert("RGB")
    texts = ["hello", "a <|image_1|> b", "<|image_1|><|image_2|>", "<|image_1|> c"]
    images = [[], [big], [small, big.rotate(180)], [small.rotate(180)]]
    items = [processor.process_item(*each) for each in zip(texts, images, strict=True)]
    return items, processor.collate(iter(items), sum(item.vision_units for item in items) + 5, dtype)


@pytest.mark.parametrize("family", qwen_golden.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arguments(family: str, dtype: torch.dtype) -> None:
    processor = load(family, "chat", min_pixels=4096, max_pixels=1003520)
    items, made = chunk(processor, dtype)
    tensors, lengths = made.tensors, made.host_values["image_lengths"]
    assert made.num_items == 4
    assert made.has_image
    assert made.dummy == {}
    assert list(lengths) == sorted(lengths)
    patches = sum(lengths)
    width = 2 * 3 * processor.patch_size**2
    assert tensors["pixel_values"].shape == (patches, width)
    assert tensors["pixel_values"].dtype == dtype
    assert len(tensors["image_rows"]) * 4 == patches == sum(item.vision_units for item in items)
    # Every image's rows hold its own pixels, at its own places.
    flat = tensors["input_ids"].flatten()
    assert sorted(tensors["image_rows"].tolist()) == (flat == processor.image_token_id).nonzero()[:, 0].tolist()
    ordered = tensors["pixel_values"].view(-1, 4, width)[tensors["image_rows"].argsort()].flatten(0, 1)
    expected = torch.cat([item.tensors["image_patches"] for item in items if item.has_image])
    rows = torch.empty(patches, width, dtype=dtype)
    processor.image_processor.write_pixel_values(expected, rows)
    assert torch.equal(ordered, rows)
    grids = sorted(
        (grid for item in items for grid in item.host_values.get("image_grids", ())), key=lambda grid: grid[0] * grid[1]
    )
    assert torch.equal(tensors["patch_positions"], patch_positions(grids))
    if family == "qwen2_5_vl":
        index, window_lengths = windows(grids, 4)
        assert torch.equal(tensors["window_index"], index)
        assert made.host_values["window_lengths"] == window_lengths
    if family == "qwen3_vl":
        indices, weights = interpolation(grids, 12)
        assert torch.equal(tensors["interpolation_indices"], indices)
        assert torch.equal(tensors["interpolation_weights"], weights)


@pytest.mark.parametrize("family", qwen_golden.FAMILIES)
def test_a_chunk_without_images_has_a_dummy(family: str) -> None:
    """The same arguments for one image of one token, which belongs to no row."""
    processor = load(family)
    _, with_images = chunk(processor, torch.bfloat16)
    text = processor.collate([processor.process_item("a"), processor.process_item("b c")], 0, torch.bfloat16)
    assert not text.has_image
    assert text.host_values == {}
    assert set(text.tensors) == {"input_ids", "attention_mask", "position_ids"}
    arguments = {**with_images.tensors, **with_images.host_values}
    assert text.dummy.keys() == (arguments.keys() - text.tensors.keys()) | {"dummy_image"}
    for name, value in text.dummy.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == arguments[name].dtype
            assert value.ndim == arguments[name].ndim
    assert text.dummy["image_lengths"] == (4,)
    assert not text.dummy["pixel_values"].any()
    assert len(text.dummy["image_rows"]) == 0


def test_a_row_alone_and_among_others() -> None:
    """Positions do not depend on the neighbours."""
    for name in ("vlm2vec", "chat"):
        processor = load("qwen2_vl", name, min_pixels=3136, max_pixels=1003520)
        items, made = chunk(processor)
        for row, item in enumerate(items):
            alone = processor.collate([item], item.vision_units, torch.float32).tensors["position_ids"]
            assert torch.equal(made.tensors["position_ids"][:, row, : alone.shape[2]], alone[:, 0])


def test_items_are_released_one_after_the_other() -> None:
    """What is kept of an item are its patches as bytes."""
    processor = load("qwen3_vl")
    alive: list[weakref.ref[ProcessedItem]] = []

    def items() -> Iterator[ProcessedItem]:
        for _ in range(3):
            assert all(reference() is None for reference in alive)
            item = processor.process_item("", [SMALL])
            alive.append(weakref.ref(item))
            yield item
            del item

    assert processor.collate(items(), 1000, torch.float32).num_items == 3


def test_planning_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = load("qwen2_vl")

    def refuse(*_: object) -> None:
        raise AssertionError("an image was decoded")

    for name in ("load", "convert", "resize"):
        monkeypatch.setattr(Image.Image, name, refuse)
    tokens = processor.num_image_tokens(1500, 1130)
    assert (tokens, processor.num_vision_units(1500, 1130)) == (1271, 4 * 1271)
    assert len(processor.tokenize("<|image_1|> a", [tokens])) == tokens + 1


@pytest.mark.parametrize("family", qwen_golden.FAMILIES)
def test_the_largest_image(family: str) -> None:
    processor = load(family)
    size = processor.largest_image_size
    item = processor.process_item("", [Image.new("RGB", size)])
    most = processor.image_limits["max_pixels"] // (2 * processor.patch_size) ** 2
    assert item.vision_units == 4 * most == processor.num_vision_units(*size)


# --- Estimates ---


@pytest.mark.parametrize("family", qwen_golden.FAMILIES)
def test_blank_items(family: str) -> None:
    """A processor of the configuration alone makes calls of the same form, with pixels that take no memory."""
    config = AutoConfig.from_pretrained(qwen_golden.model_folder(family))
    limits = {"min_pixels": 4096, "max_pixels": 100_000}
    real, blank = (
        load(family, "chat", **limits),
        PROCESSORS[family].without_tokenizer(config, FORMATS["chat"], **limits),
    )
    sizes = [(300, 200), (64, 64)]
    expected = real.process_item("a <|image_1|> b <|image_2|>", [Image.new("RGB", size) for size in sizes])
    made = blank.blank_item(len(expected.input_ids), sizes)
    assert made.vision_units == expected.vision_units
    assert made.host_values == expected.host_values
    for name, tensor in expected.tensors.items():
        assert made.tensors[name].is_meta
        assert made.tensors[name].shape == tensor.shape
    calls = [
        each.collate([item], item.vision_units, torch.bfloat16) for each, item in ((real, expected), (blank, made))
    ]
    assert calls[0].host_values == calls[1].host_values
    for name, tensor in calls[0].tensors.items():
        assert (calls[1].tensors[name].shape, calls[1].tensors[name].dtype) == (tensor.shape, tensor.dtype)
    assert calls[1].tensors["pixel_values"].is_meta
    assert (
        blank.collate([blank.blank_item(5)], 0, torch.float32).dummy.keys()
        == real.collate([real.blank_item(5)], 0, torch.float32).dummy.keys()
    )
    with pytest.raises(ValueError, match="3 tokens cannot hold"):
        blank.blank_item(3, sizes)


def test_limits_of_estimates(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(qwen_golden.model_folder("qwen3_vl"))
    assert Qwen3VLProcessor.without_tokenizer(config).image_limits == {"min_pixels": 4096, "max_pixels": 1280 * 1024}
    assert Qwen3VLProcessor.stored_limits(qwen_golden.model_folder("qwen3_vl")) == {}
    folder = copied("qwen3_vl", tmp_path / "model", size={"shortest_edge": 65536, "longest_edge": 70_000})
    assert Qwen3VLProcessor.stored_limits(folder) == {"min_pixels": 65536, "max_pixels": 70_000}
