"""A training table with several images per item and 0 to 3 hard negatives per row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trials.rig.hand_made_train import TABLE, image_bytes, row
from vlm2vec.shards import Item

NUM_ROWS = 10
_FOLDER = "images/A/Train"
_TWO = "<|image_1|> and <|image_2|>"


def several_rows(num_rows: int = NUM_ROWS) -> list[dict[str, Any]]:
    """Row n has n % 3 + 1 query images, one or two target images, and n % 4 hard negatives of different kinds."""
    rows: list[dict[str, Any]] = []
    for number in range(num_rows):
        count = number % 3 + 1
        tags = " ".join(f"<|image_{image + 1}|>" for image in range(count))
        kinds = [("wrong", []), (f"{_TWO} wrong", _paths(1, 2)), ("", _paths(number % 4))][: number % 4]
        target = {} if number % 2 else {"pos_text": f"{_TWO} answer {number}", "pos_image_path": _paths(0, 3)}
        rows.append(
            {
                **row(number, qry=f"{tags} question {number}"),
                "qry_image_path": _paths(*(image % 4 for image in range(number, number + count))),
                "pos_image_path": [],
                "neg_text": [text for text, _ in kinds],
                "neg_image_path": [images for _, images in kinds],
                **target,
            }
        )
    return rows


def write_several(root: Path, rows: list[dict[str, Any]], name: str = TABLE) -> None:
    """Writes rows with lists, and the images that they name."""
    (root / _FOLDER).mkdir(parents=True, exist_ok=True)
    for shade in range(4):
        (root / _FOLDER / f"{shade}.png").write_bytes(image_bytes(60 * shade))
    (root / name).parent.mkdir(exist_ok=True)
    schema = pa.schema({column: pa.string() for column in ("qry", "pos_text")})
    for column, depth in (("qry_image_path", 1), ("pos_image_path", 1), ("neg_text", 1), ("neg_image_path", 2)):
        kind = pa.list_(pa.string())
        schema = schema.append(pa.field(column, kind if depth == 1 else pa.list_(kind)))
    pq.write_table(pa.Table.from_pylist(rows, schema), root / name, row_group_size=4)


def expected_items(values: dict[str, Any]) -> tuple[Item, Item, tuple[Item, ...]]:
    """A row's query, target and hard negatives."""
    negatives = zip(values["neg_text"], values["neg_image_path"], strict=True)
    return (
        Item(values["qry"], _images(values["qry_image_path"])),
        Item(values["pos_text"], _images(values["pos_image_path"])),
        tuple(Item(text, _images(paths)) for text, paths in negatives),
    )


def _images(paths: list[str]) -> tuple[bytes, ...]:
    return tuple(image_bytes(60 * int(Path(path).stem)) for path in paths)


def _paths(*shades: int) -> list[str]:
    return [f"{_FOLDER}/{shade}.png" for shade in shades]
