from __future__ import annotations

import pytest

from data_prep.own.columns import FIELDS, MMEB_NAMES, choose_columns, parse_columns
from vlm2vec.errors import InputError


def test_columns_are_known_by_their_names_or_mmebs() -> None:
    assert choose_columns("t", [*FIELDS, "id"], None) == {field: field for field in FIELDS}
    assert choose_columns("t", ["id", *MMEB_NAMES.values()], None) == MMEB_NAMES
    assert choose_columns("t", ["positive_image", "qry"], None) == {"query": "qry", "positive_image": "positive_image"}


def test_columns_asked_for_are_the_only_ones_in_use() -> None:
    asked = parse_columns(["positive_image=photo", "query=query_2=b"])
    assert list(asked) == ["query", "positive_image"]
    assert choose_columns("t", ["query", "query_2=b", "photo", "negative"], asked) == {
        "query": "query_2=b",
        "positive_image": "photo",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["query"], "--columns query: write field=column"),
        (["query="], "--columns query=: write field=column"),
        (["qry=a"], "'qry' is none of query, query_image, positive"),
        (["query=a", "query=b"], "query is given twice (a before)"),
        (["query=a", "positive=a"], "column a is given twice"),
        (["query=a", "negative=b"], "nothing for the positive; add positive= or positive_image="),
        (["positive=a"], "nothing for the query; add query= or query_image="),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_columns(words)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("available", "asked", "message"),
    [
        (["caption", "photo"], None, "t: no column for the query; it has caption, photo; name the columns: --columns"),
        (["query", "id"], None, "t: no column for the positive; it has query, id"),
        (["query", "qry", "positive"], None, "t: columns query and qry are both the query"),
        (["query", "positive", "query"], None, "t: column query occurs 2 times"),
        (["a", "b"], {"query": "a", "positive": "c"}, "t: no column c; it has a, b"),
        ([str(number) for number in range(20)], None, "10, 11 and 8 more"),
    ],
)
def test_tables_without_their_columns_are_refused(
    available: list[str], asked: dict[str, str] | None, message: str
) -> None:
    with pytest.raises(InputError) as error:
        choose_columns("t", available, asked)
    assert message in str(error.value)
