"""Examples of shards as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data_prep.inspect_mined import MinedExample
from data_prep.inspect_page import SIDE_NAMES, mined_note
from vlm2vec.errors import InputError
from vlm2vec.images.decode import read_header
from vlm2vec.messages.page import shown_text
from vlm2vec.shards import Sample
from vlm2vec.shards.entry import item_name
from vlm2vec.shards.schema import NEGATIVE, POSITIVE, QUERY, Item

_TEXT_CHARACTERS = 160
_NAME_WIDTH = 16


def example_lines(examples: Sequence[Sample | str], mined: Sequence[MinedExample] | None) -> Iterator[str]:
    """Lines of some pairs, with their hard negatives and those that were mined.

    Args:
        examples: Pairs; a message in the place of one that cannot be read.
        mined: What was mined of each; None: nothing.
    """
    for number, example in enumerate(examples):
        if isinstance(example, str):
            yield shown_text(example)
            continue
        found = mined[number] if mined is not None else None
        yield example.key
        yield _line(SIDE_NAMES[QUERY], example.query)
        yield _line(SIDE_NAMES[POSITIVE], example.positive, f"cosine {found.positive_score:.3f}" if found else "")
        for place, item in enumerate(example.negatives):
            yield _line(item_name(SIDE_NAMES[NEGATIVE], place), item)
        if found is None:
            continue
        for negative in found.negatives:
            scores = f"cosine {negative.score:.3f}, margin {negative.margin:.3f}"
            yield _line(f"mined {negative.rank}", negative.target, scores)
        yield f"  {mined_note(found)}"


def _line(name: str, item: Item | str, scores: str = "") -> str:
    if isinstance(item, str):
        content = shown_text(item)
    else:
        text = " ".join(shown_text(item.text).split())
        parts = [*(_size(image) for image in item.images), *([_quoted(text)] if text else [])]
        content = ", ".join(parts)
    return f"  {name:<{_NAME_WIDTH}}{f'{scores}: ' if scores else ''}{content}"


def _quoted(text: str) -> str:
    return f'"{text[:_TEXT_CHARACTERS]}{"…" if len(text) > _TEXT_CHARACTERS else ""}"'


def _size(image: bytes) -> str:
    try:
        header = read_header(image, "image")
    except InputError as error:
        return str(error)
    return f"image {header.width} x {header.height}"
