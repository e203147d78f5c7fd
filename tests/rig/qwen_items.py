"""The reference's items in the project's form."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.rig.golden import ROOT

# The prompt format of each family's reference code.
FORMATS = {"qwen2_vl": "vlm2vec", "qwen2_5_vl": "vlm2vec", "qwen3_vl": "qwen3_vl_embedding"}


@dataclass(frozen=True)
class Item:
    """A text, the files of its images, and an instruction."""

    text: str | None
    images: tuple[Path, ...]
    instruction: str | None = None


def items_of(family: str, side: Any) -> list[Item]:
    """Items of a case, or of a side of the training data.

    Args:
        family: The family's name.
        side: VLM2Vec's `texts` and `images`, or the items of Qwen3-VL-Embedding.
    """
    if isinstance(side, list):
        return [
            Item(_joined(each.get("text")), _files(family, each.get("image")), each.get("instruction")) for each in side
        ]
    pairs = zip(side["texts"], side["images"], strict=True)
    return [Item(_tagged(text), _files(family, images)) for text, images in pairs]


def encode_arguments(items: Sequence[Item]) -> dict[str, Any]:
    """What `VLM2Vec.encode` takes."""
    arguments = {"texts": [item.text for item in items], "images": [list(item.images) or None for item in items]}
    given = any(item.instruction is not None for item in items)
    return arguments | ({"instruction": [item.instruction for item in items]} if given else {})


def _files(family: str, names: str | list[str] | None) -> tuple[Path, ...]:
    return tuple(ROOT / family / name for name in ([names] if isinstance(names, str) else names or []))


def _joined(text: str | list[str] | None) -> str | None:
    """Several texts of an item stand one directly behind the other."""
    return "".join(text) if isinstance(text, list) else text


def _tagged(text: str) -> str:
    """Each image token as the tag that the project has for it."""
    pieces = text.split("<|image_pad|>")
    numbered = (f"<|image_{number}|>{piece}" for number, piece in zip(itertools.count(1), pieces[1:], strict=False))
    return pieces[0] + "".join(numbered)
