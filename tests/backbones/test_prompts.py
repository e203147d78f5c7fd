"""Prompts of three published models, and prompt formats that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from vlm2vec.backbones.image_limits import LIMITS, ImageLimitFlags, ImageLimits, describe_limits, refuse_limits
from vlm2vec.backbones.interface import Family
from vlm2vec.backbones.phi3_v import Phi3VProcessor
from vlm2vec.backbones.prompts import Prompt, PromptFormat
from vlm2vec.backbones.registry import family_named
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import checked
from vlm2vec.item_rules import IMAGE_ONLY_TEXT
from vlm2vec.sentence_transformer import VLM2VecModule

RAW = PromptFormat()
# The prompt that Qwen3-VL-Embedding is published with.
CHAT = PromptFormat(
    name="chat",
    images="first",
    template="<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n",
    instruction="Represent the user's input.",
    instruction_full_stop=True,
    image_alone="<|image_1|>",
    nothing="NULL",
)


_BRACES = "<|image_2|> and\n<|image_1|> {content} {instruction} {"


def chat(instruction: str, content: str) -> str:
    return f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n"


@pytest.mark.parametrize(
    ("text", "num_images", "expected"),
    [
        ("a text", 0, "a text"),
        ("", 0, ""),
        ("a stray <|image_1|> tag", 0, "a stray <|image_1|> tag"),
        ("", 1, IMAGE_ONLY_TEXT),
        ("<|image_1|>", 1, "<|image_1|>"),
        (_BRACES, 2, _BRACES),
    ],
)
def test_the_raw_format_is_the_text_itself(text: str, num_images: int, expected: str) -> None:
    assert RAW.render(text, num_images) == expected


@pytest.mark.parametrize(
    ("text", "num_images", "content"),
    [
        ("a text", 0, "a text"),
        ("<|image_1|> Find it\n", 1, "<|image_1|>Find it\n"),
        ("<|image_1|>\nFind it", 1, "<|image_1|>Find it"),
        ("<|image_1|>  Find it", 1, "<|image_1|> Find it"),
        ("Find <|image_2|> in <|image_1|>.", 2, "<|image_1|><|image_2|>Find in ."),
        ("no tag", 2, "<|image_1|><|image_2|>no tag"),
        ("", 1, "<|image_1|>"),
        ("", 3, "<|image_1|><|image_2|><|image_3|>"),
        ("a stray <|image_7|> tag", 0, "a stray tag"),
        ("", 0, "NULL"),
        ("<|image_1|>", 0, "NULL"),
        ("{content}", 0, "{content}"),
    ],
)
def test_images_first_in_a_chat_template(text: str, num_images: int, content: str) -> None:
    assert CHAT.render(text, num_images) == chat("Represent the user's input.", content)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "Represent the user's input."),
        ("", "Represent the user's input."),
        (" Find a cat ", "Find a cat."),
        ("Find a cat?", "Find a cat?"),
        ("Finde 猫。", "Finde 猫。"),
        ("Find a cat\u20ac", "Find a cat\u20ac."),  # a currency symbol is no punctuation
        ("{content} and {instruction}", "{content} and {instruction}"),
    ],
)
def test_an_instruction_has_its_place(given: str | None, said: str) -> None:
    said = said if said.endswith((".", "?", "。", "}")) else f"{said}."
    assert CHAT.render("x", 0, given) == chat(said, "x")


def test_an_instruction_without_a_place_is_refused() -> None:
    with pytest.raises(InputError, match=r"'raw' has no place for an instruction \(\"Find\"\): put it into the text"):
        RAW.render("a", 0, "Find")
    assert RAW.render("a", 0, "") == "a"
    with pytest.raises(InputError, match=r"the instruction .* holds an image tag"):
        CHAT.render("a", 1, "Find <|image_1|>")


@pytest.mark.parametrize("each", [RAW, CHAT])
@pytest.mark.parametrize(
    ("text", "num_images"), [("<|image_2|> a", 1), ("<|image_1|> <|image_1|>", 1), ("<|image_1|>", 2)]
)
def test_tags_that_do_not_fit_are_refused(each: PromptFormat, text: str, num_images: int) -> None:
    with pytest.raises(InputError, match="each image k needs its tag"):
        each.render(text, num_images)


def test_an_item_without_content_is_refused_unless_the_format_has_a_text_for_it() -> None:
    for text in ("", " \n", "<|image_1|>"):
        with pytest.raises(InputError, match=r"no content and there is no image|empty"):
            RAW.refuse_empty(text, 0)
        CHAT.refuse_empty(text, 0)
    RAW.refuse_empty("", 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"template": "x"}, "template is .*exactly once"),
        ({"template": "{content}{content}"}, "exactly once"),
        ({"template": "{instruction}{instruction}{content}", "instruction": ""}, "at most once"),
        ({"template": "{content} <|image_1|>"}, "holds an image tag"),
        ({"template": "{instruction}{content}"}, "needs a default instruction"),
        ({"instruction": "Find it"}, "one without it has none"),
        ({"image_alone": "Represent it"}, "image_alone: .*no image tag"),
        ({"nothing": ""}, "nothing is empty"),
        ({"images": "last"}, 'images is "last"'),
        ({"positions": "1d"}, 'positions is "1d"'),
        ({"pooled": "mean"}, 'pooled is "mean"'),
        ({"instruction_full_stop": 1}, "instruction_full_stop is 1"),
        ({"max_len": 9}, "max_len is not a setting that this version knows"),
        ({"name": ""}, 'name is ""'),
        ({"template": "{content}" + "x" * 20_000}, "template is "),
    ],
)
def test_an_impossible_format_is_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^a file: .*{said}") as refusal:
        checked(PromptFormat, changes, "a file")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400
    with pytest.raises(ValidationError):
        PromptFormat(**changes)


def test_a_format_survives_json_and_its_name_decides_nothing() -> None:
    for each in (RAW, CHAT):
        again = checked(PromptFormat, json.loads(json.dumps(each.model_dump())), "a file")
        assert again == each
        assert again.is_same(each.model_copy(update={"name": "other"}))
    assert not RAW.is_same(CHAT)


def test_truncation_spares_the_template() -> None:
    prompt = Prompt("<s>", "abcdef", "<e>")
    ids, offsets = list(range(12)), [(place, place + 1) for place in range(12)]
    assert prompt.truncated(ids, offsets, None) == prompt.truncated(ids, offsets, 12) == ids
    assert prompt.truncated(ids, offsets, 8) == [0, 1, 2, 3, 4, 9, 10, 11]
    assert prompt.truncated(ids, offsets, 2) == [0, 1, 2, 9, 10, 11]


@pytest.fixture
def phi() -> Family:
    return family_named("phi3_v", "test")


def test_a_family_knows_its_formats(phi: Family) -> None:
    assert phi.folder_format(Path()) is phi.prompt_format("phi3_v") is phi.prompt_formats["phi3_v"]
    assert phi.folder_format(Path()) == PromptFormat(name="phi3_v")
    own = PromptFormat(name="mine", images="first")
    assert phi.prompt_format(own) is own
    with pytest.raises(InputError, match='"mine" is not a known format; this model\'s family supports phi3_v'):
        phi.prompt_format("mine")
    for field, value in {"image": "<i>", "positions": "grid", "transparency": "white", "resize": "qwen"}.items():
        with pytest.raises(InputError, match=f'prompt format .raw.: {field} is "{value}"; a phi3_v supports only '):
            phi.prompt_format(RAW.model_copy(update={field: value}))
    with pytest.raises(InputError, match="this model's family supports a, phi3_v"):
        replace(phi, prompt_formats={"a": own, **phi.prompt_formats}).prompt_format("b")


def test_a_processor_makes_the_prompts_of_its_format(golden_model_dir: Path) -> None:
    raw = Phi3VProcessor.from_pretrained(golden_model_dir)
    processor = Phi3VProcessor.from_pretrained(golden_model_dir, CHAT)
    assert processor.tokenize("a", (), None, "Find it") == raw.tokenize(chat("Find it.", "a"))
    assert processor.tokenize("a", [3]) == raw.tokenize(chat("Represent the user's input.", "<|image_1|>a"), [3])
    whole, shorter = processor.tokenize("a cat and a dog"), processor.tokenize("a")
    assert len(whole) > len(shorter)
    assert len(processor.tokenize("a cat and a dog", (), len(whole) - 2)) == len(whole) - 2
    cut = processor.tokenize("a cat and a dog", (), 1)
    assert (cut[:10], cut[-5:]) == (whole[:10], whole[-5:])
    item = processor.process_item("a", (), None, "Find it")
    assert item.input_ids.tolist() == raw.tokenize(chat("Find it.", "a"))
    with pytest.raises(InputError, match="positions"):
        Phi3VProcessor.from_pretrained(golden_model_dir, PromptFormat(positions="grid"))


def test_limits_have_one_place(golden_model_dir: Path) -> None:
    assert LIMITS == ("num_crops", "min_pixels", "max_pixels") == tuple(ImageLimitFlags.__dataclass_fields__)
    assert ImageLimitFlags(max_pixels=9).image_limits == {"max_pixels": 9}
    with pytest.raises(InputError, match="max_pixels is 0"):
        checked(ImageLimits, {"max_pixels": 0}, "a file")
    with pytest.raises(
        InputError, match=r"^min_pixels: a phi3_v has no such limit on its images; use num_crops, or leave it out"
    ):
        Phi3VProcessor.from_pretrained(golden_model_dir, min_pixels=9)
    refuse_limits(["num_crops"], ["num_crops"], "phi3_v")


def test_limits_are_described_for_people() -> None:
    assert describe_limits({"num_crops": 1, "max_pixels": None}) == ["1 crop"]
    assert describe_limits({"num_crops": 16}) == ["16 crops"]
    assert describe_limits({"min_pixels": 3136, "max_pixels": 1003520}) == ["3,136 to 1,003,520 pixels"]
    assert describe_limits({"max_pixels": 9}) == ["at most 9 pixels"]
    assert describe_limits({}) == []
    with pytest.raises(InputError, match="min_pixels is 9, more than max_pixels 4"):
        checked(ImageLimits, {"min_pixels": 9, "max_pixels": 4}, "a file")


def test_instructions_of_items(golden_model_dir: Path) -> None:
    """One for all or one an item; in the vectors as in the tokens."""
    encoder = VLM2Vec.from_pretrained(golden_model_dir, prompt_format=CHAT)
    texts = ["a cat", "", "a dog"]
    own = encoder.encode(texts, instruction=["Find it", None, ""])
    same = VLM2Vec.from_pretrained(golden_model_dir)
    default = "Represent the user's input."
    expected = [chat("Find it.", "a cat"), chat(default, "NULL"), chat(default, "a dog")]
    torch.testing.assert_close(own, same.encode(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder.encode(texts, instruction=default), encoder.encode(texts))
    assert (encoder.encode(texts, instruction="Find it") - encoder.encode(texts)).abs().max() > 1e-3
    with pytest.raises(InputError, match="3 items but 2 instructions"):
        encoder.encode(texts, instruction=["a", "b"])
    with pytest.raises(InputError, match="item 1: an instruction must be a string, not int"):
        encoder.encode(texts, instruction=["a", 1, "b"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="item 0: prompt format 'phi3_v' has no place for an instruction"):
        same.encode(["a"], instruction="Find it")


def test_sentence_transformers_prompt_is_the_instruction_where_there_is_a_place(golden_model_dir: Path) -> None:
    for prompt_format, expected in ((CHAT, chat("Find it.", "a cat")), (None, "Find ita cat")):
        encoder = VLM2Vec.from_pretrained(golden_model_dir, prompt_format=prompt_format)
        ids = VLM2VecModule(encoder).preprocess(["a cat"], prompt="Find it")["input_ids"]
        assert ids[0].tolist() == Phi3VProcessor.from_pretrained(golden_model_dir).tokenize(expected)


@pytest.mark.parametrize(
    ("text", "num_images", "instruction", "expected"),
    [
        ("words", 0, "Find:", ("Find: words", None)),
        ("", 1, "Describe.", ("<|image_1|> Describe.", None)),
        ("words", 2, "Find:", ("<|image_1|> <|image_2|> Find: words", None)),
        ("", 1, "", ("", None)),  # an image alone has its own prompt
        ("words", 1, "", ("<|image_1|> words", None)),
        ("words", 0, "Find: {text}\n", ("Find: words\n", None)),
        ("words", 1, "<|image_1|>\nSee {text}\n", ("<|image_1|>\nSee words\n", None)),
        ("words", 0, "<|image_1|>\nSee {text}\n", ("See words\n", None)),
        ("", 1, "See {text}.", ("<|image_1|> See .", None)),
    ],
)
def test_an_instruction_becomes_part_of_the_text(
    text: str, num_images: int, instruction: str, expected: tuple[str, str | None]
) -> None:
    assert PromptFormat().instructed(text, num_images, instruction) == expected


def test_an_instruction_goes_to_the_formats_place_for_one() -> None:
    chat = PromptFormat(name="chat", template="system {instruction} user {content}", instruction="Be brief.")
    assert chat.instructed("words", 1, "Find") == ("<|image_1|> words", "Find")
    assert chat.instructed("words", 0, "") == ("words", None)
    assert chat.instructed("words", 0, "whole {text}") == ("whole words", None)
