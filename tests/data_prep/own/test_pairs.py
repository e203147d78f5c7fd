from __future__ import annotations

import base64
from typing import Any

import pytest

from data_prep.own.pairs import instruction, pair_of
from data_prep.rows import RawImage, RawItem, RowError

PLACE = "x.jsonl, line 3"
PLAIN: dict[str, Any] = {"query": "q", "positive": "p"}


def query(text: str | None, *images: str, instruct: str | None = None) -> str:
    """The stored text of a query."""
    values = {**PLAIN, "query": text, "query_image": list(images) if len(images) > 1 else "".join(images)}
    pair = pair_of(values, PLACE, instruct)
    assert pair.query.images == tuple(map(RawImage, images))
    return pair.query.text


def test_a_text_without_markers_gets_one_for_each_image_at_the_front() -> None:
    assert query("What is it?") == "What is it?"
    assert query("What is it?", "a.png") == "<|image_1|> What is it?"
    assert query("Which differs?", "a.png", "b.png") == "<|image_1|> <|image_2|> Which differs?"
    assert query("See <|image_1|>: what?", "a.png") == "See <|image_1|>: what?"
    assert query("Only <|image_2|>", "a.png", "b.png") == "Only <|image_2|>"  # the converter's check refuses it


def test_an_image_alone_has_no_text_and_gets_the_default_prompt() -> None:
    assert query("", "a.png") == query(None, "a.png") == query(" \n", "a.png") == ""
    assert query("", "a.png", "b.png") == "<|image_1|> <|image_2|>"


def test_an_instruction_comes_before_queries_and_after_leading_markers() -> None:
    assert query("red shoes", instruct="Find:") == "Find: red shoes"
    assert query("red shoes", "a.png", instruct="Find:") == "<|image_1|> Find: red shoes"
    assert query("", "a.png", instruct="Find it.") == "<|image_1|> Find it."
    assert query("<|image_1|>\nred shoes", "a.png", instruct="Find:") == "<|image_1|>\nFind: red shoes"
    assert query("like <|image_1|>", "a.png", instruct="Find:") == "Find: like <|image_1|>"
    pair = pair_of({**PLAIN, "negative": "n"}, PLACE, "Find:")
    assert (pair.positive.text, pair.negatives[0].text) == ("p", "n")
    for bad in (" ", "<|image_1|> Find"):
        with pytest.raises(Exception, match="an instruction must contain words"):
            instruction(bad)


@pytest.mark.parametrize(
    ("value", "image"),
    [
        ("a.png", RawImage("a.png")),
        (b"\x89PNG", RawImage(f"{PLACE}, query_image", b"\x89PNG")),
        ({"bytes": b"\x89PNG", "path": "a.png"}, RawImage(f"{PLACE}, query_image (a.png)", b"\x89PNG")),
        ({"bytes": b"\x89PNG", "path": None}, RawImage(f"{PLACE}, query_image", b"\x89PNG")),
        ({"bytes": base64.b64encode(b"\x89PNG").decode()}, RawImage(f"{PLACE}, query_image", b"\x89PNG")),
        ({"bytes": None, "path": "a.png"}, RawImage("a.png")),
        ({"bytes": None, "path": None}, None),
        ("", None),
        ([], None),
        (None, None),
    ],
)
def test_images_are_paths_bytes_or_both(value: Any, image: RawImage | None) -> None:
    pair = pair_of({**PLAIN, "query_image": value}, PLACE)
    assert pair.query.images == ((image,) if image else ())


@pytest.mark.parametrize(
    ("negative", "negative_image", "items"),
    [
        (None, None, []),
        ("", "", []),
        ("a", None, [RawItem("a")]),
        (["a", "", None, "b"], None, [RawItem("a"), RawItem("b")]),
        (None, ["a.png", "b.png"], [RawItem("", (RawImage("a.png"),)), RawItem("", (RawImage("b.png"),))]),
        ("t", ["a.png", "b.png"], [RawItem("<|image_1|> t", (RawImage(f"{name}.png"),)) for name in "ab"]),
        (["a", "b"], ["a.png", ""], [RawItem("<|image_1|> a", (RawImage("a.png"),)), RawItem("b")]),
        ([], [], []),
        (None, [["a.png", "b.png"]], [RawItem("<|image_1|> <|image_2|>", (RawImage("a.png"), RawImage("b.png")))]),
    ],
)
def test_lists_are_several_negatives(negative: Any, negative_image: Any, items: list[RawItem]) -> None:
    pair = pair_of({**PLAIN, "negative": negative, "negative_image": negative_image}, PLACE)
    assert list(pair.negatives) == items


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"query": 5}, "query is a number (5), not a text"),
        ({"query": ["a"]}, "query is a list (['a']), not a text"),
        ({"query": True}, "query is true or false (True), not a text"),
        ({"query": "\ud800"}, "query is not valid Unicode (is the file UTF-8?)"),
        ({"query": b"\xff"}, "query is not valid Unicode (is the file UTF-8?)"),
        ({"query_image": 5}, "query_image is a number (5), not an image's path or bytes"),
        ({"query_image": ["a.png", None]}, "image 2 of query_image is missing"),
        ({"query_image": {"url": "x"}}, "query_image has url; an image is a path or {bytes, path}"),
        ({"query_image": {"bytes": "?"}}, "bytes of query_image are not base64"),
        ({"query_image": {"bytes": 5}}, "bytes of query_image are not base64"),
        ({"query_image": "\ud800"}, "query_image is not valid Unicode"),
        ({"negative": ["a"], "negative_image": ["a", "b"]}, "negative has 1 text and 2 images"),
        ({"negative": ["a", "b"], "negative_image": "a"}, "negative has 2 texts and 1 image"),
        ({"negative": [["a"]]}, "negative is a list"),
    ],
)
def test_values_of_another_kind_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError) as error:
        pair_of({**PLAIN, **values}, PLACE)
    assert str(error.value).startswith(message)
