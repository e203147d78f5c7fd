from __future__ import annotations

import pytest

from vlm2vec.errors import InputError
from vlm2vec.item_rules import check_item, image_tags

SQUARE = (30, 30)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("a text", None),
        ("<|image_1|> stray, as WebQA has it", None),
        ("\U0001f600", None),
        ("", SQUARE),
        ("<|image_1|>", SQUARE),
        ("before <|image_1|> behind", SQUARE),
        ("<|image_1|>", (1, 200)),
        ("<|image_1|>", (200, 1)),
        ("<|endoftext|>", None),  # the original encodes it, too
    ],
)
def test_what_can_be_encoded_passes(text: str, size: tuple[int, int] | None) -> None:
    check_item(text, [size] if size else [])


@pytest.mark.parametrize(
    ("text", "size", "reason"),
    [
        ("", None, "empty"),
        (" \n\t", None, "has no content and there is no image"),
        ("\u200b\ufeff\u00a0\0", None, "has no content"),
        ("<|image_1|>\n", None, "has no content"),
        ("no tag", SQUARE, "no image tag"),
        ("  ", SQUARE, "no image tag"),
        ("<|image_2|>", SQUARE, r"<\|image_2\|> in its text"),
        ("<|image_0|>", SQUARE, r"<\|image_0\|> in its text"),
        ("<|image_1|> and <|image_1|>", SQUARE, "exactly once"),
        ("<|image_1|> <|image_2|>", SQUARE, "exactly once"),
        (f"<|image_{'1' * 5000}|>", SQUARE, r"<\|image_111111111111\.\.\.\|>"),
        ("<|image_1|>" * 9, SQUARE, "and 4 more"),
        ("<|image_1|>", (1, 300), "1 x 300 pixels is too thin"),
        ("", (300, 1), "300 x 1 pixels is too thin"),
        ("<|image_1|>", (1, 89_000_000), "too thin"),
    ],
)
def test_what_cannot_is_refused_in_one_line(text: str, size: tuple[int, int] | None, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        check_item(text, [size] if size else [])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_each_of_several_images_needs_its_tag() -> None:
    check_item("<|image_2|> <|image_1|> differ", [SQUARE, (1, 200)])
    for text in ("", "no tag", "<|image_1|> alone", "<|image_1|> <|image_2|> <|image_2|>"):
        with pytest.raises(InputError, match="an item with 2 images has"):
            check_item(text, [SQUARE, SQUARE])
    with pytest.raises(InputError, match="too thin"):
        check_item("<|image_1|> <|image_2|>", [SQUARE, (1, 300)])


def test_tags_come_in_the_order_of_the_text() -> None:
    assert image_tags("<|image_2|> a <|image_1|>", 2) == [2, 1]
