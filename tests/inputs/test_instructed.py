"""Items with an instruction: the text, and the place of the instruction."""

from __future__ import annotations

import pytest
from PIL import Image

from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.errors import InputError
from vlm2vec.inputs.instructed import instructed
from vlm2vec.inputs.user_lists import make_items

CHAT = PromptFormat(template="<{instruction}> {content}", instruction="Represent.", images="first")
IMAGE = Image.new("RGB", (9, 9))


@pytest.mark.parametrize(
    ("prompt_format", "text", "image", "instruction", "expected"),
    [
        (PromptFormat(), "a car", None, "Find:", ("Find: a car", None)),
        (PromptFormat(), "a car", None, "Find: ", ("Find: a car", None)),
        (PromptFormat(), "a car", IMAGE, "Find:", ("<|image_1|> Find: a car", None)),
        (PromptFormat(), "a car", None, None, ("a car", None)),
        (PromptFormat(), "", IMAGE, None, ("", None)),
        (PromptFormat(), "a car", None, "Find: {text}\n", ("Find: a car\n", None)),
        (CHAT, "a car", IMAGE, "Find: ", ("<|image_1|> a car", "Find: ")),
        (CHAT, "a car", None, "", ("a car", None)),
    ],
)
def test_where_an_instruction_goes(
    prompt_format: PromptFormat,
    text: str,
    image: Image.Image | None,
    instruction: str | None,
    expected: tuple[str, str | None],
) -> None:
    (item,) = make_items([text], [image], prompt_format, instruction)
    made = instructed(item, prompt_format)
    assert (made.text, made.instruction) == expected


def test_tags_beside_an_image_are_refused() -> None:
    (item,) = make_items(["<|image_1|> a car"], [IMAGE], PromptFormat(), "Find:")
    with pytest.raises(InputError, match=r"item 0: the text '<.image_1.> a car' has image tags; remove them"):
        instructed(item, PromptFormat())
