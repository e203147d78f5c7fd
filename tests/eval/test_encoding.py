from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.datasets import ItemTable
from eval.encoding import encode_items
from tests.eval.conftest import TableEncoder
from vlm2vec.errors import InputError
from vlm2vec.images import open_image


def table_of(*pairs: tuple[str, str]) -> ItemTable:
    items = ItemTable()
    for number, (text, image) in enumerate(pairs):
        items.add(text, image, f"A.parquet row {number}")
    return items


PAIRS = (("short", ""), ("a longer text", ""), ("", "a.png"), ("mid text", ""))
VECTORS = {pair: [1.0, float(number)] for number, pair in enumerate(PAIRS)}


def test_vectors_come_back_in_the_order_of_the_items_each_encoded_once():
    encoder = TableEncoder(VECTORS)
    vectors = encode_items(encoder, table_of(*PAIRS, PAIRS[0]), Path("images"))
    assert vectors.dtype == np.float32
    assert vectors[:, 1].tolist() == [0, 1, 2, 3]
    assert [len(call) for call in encoder.calls] == [4]


def test_the_batch_size_bounds_a_batch_and_the_most_expensive_items_go_first():
    encoder = TableEncoder(VECTORS)
    vectors = encode_items(encoder, table_of(*PAIRS), Path("images"), max_items=3)
    assert encoder.calls == [[("", "a.png"), ("a longer text", ""), ("mid text", "")], [("short", "")]]
    assert vectors[:, 1].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_refused(broken: float):
    encoder = TableEncoder({**VECTORS, PAIRS[1]: [1.0, broken]})
    with pytest.raises(InputError, match=r"NaN or infinity for 1 of 4 items, first at A.parquet row 1"):
        encode_items(encoder, table_of(*PAIRS), Path("images"))


def test_a_collapsed_model_is_refused():
    noise = np.random.default_rng(0).normal(scale=1e-8, size=(4, 2))
    encoder = TableEncoder({pair: noise[number] + [0.6, 0.8] for number, pair in enumerate(PAIRS)})
    with pytest.raises(InputError, match="the same vector for all 4 items"):
        encode_items(encoder, table_of(*PAIRS), Path("images"))


def test_an_item_that_the_encoder_refuses_is_named_by_its_row(tmp_path: Path):
    class OpeningEncoder(TableEncoder):
        def encode(self, texts, images, show_progress=None):
            for index, image in enumerate(images):
                if image:
                    try:
                        open_image(image)
                    except InputError as error:
                        raise InputError(f"item {index}: {error}") from error
            return super().encode(texts, images, show_progress)

    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"^A\.parquet row 2: .*a\.png: not a JPEG"):
        encode_items(OpeningEncoder(VECTORS), table_of(*PAIRS), tmp_path)
