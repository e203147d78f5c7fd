"""Draws slides as a collection in the layout of MMEB-V2's visual documents: images, queries, relevance judgements."""

from __future__ import annotations

import io
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from data_prep.mini.drawing import Digits, in_grid
from data_prep.mini.tasks import WORDS

SLIDES = "MiniSlides"
NUM_QUERIES = 60
_SIZE = (128, 64)
_CAPTION_PLACE, _CAPTION_SIZE, _CAPTION_COLOUR = (4, 53), 9, (150, 150, 150)


def write_slides(folder: Path, seed: int, scale: float) -> int:
    """Writes a slide for each ordered pair of held-out digits, queries for some pairs, and graded judgements.

    The slide that shows the pair is relevant with grade 2, the one that shows it swapped with grade 1.

    Args:
        folder: The collection's folder; `corpus/`, `queries/` and `qrels/` are written into it.
        seed: The same seed gives the same bytes.
        scale: The number of queries, as a share of the full number.

    Returns:
        The number of queries.
    """
    generator = np.random.default_rng([seed, len(SLIDES)])
    digits = Digits("test")
    pairs = list(permutations(range(len(WORDS)), 2))
    slides = [
        {"corpus-id": f"slide-{number:02d}", "image": {"bytes": _slide(pair, number, digits, generator), "path": None}}
        for number, pair in enumerate(pairs)
    ]
    queries, qrels = [], []
    asked = generator.permutation(len(pairs))[: min(len(pairs), max(4, round(scale * NUM_QUERIES)))]
    for number, place in enumerate(asked.tolist()):
        left, right = pairs[place]
        queries.append({"query-id": number, "query": f"a {WORDS[left]} to the left of a {WORDS[right]}"})
        for grade, pair in ((2, (left, right)), (1, (right, left))):
            qrels.append({"query-id": number, "corpus-id": f"slide-{pairs.index(pair):02d}", "score": grade})
    for part, rows in (("corpus", slides), ("queries", queries), ("qrels", qrels)):
        path = folder / part / "test-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    return len(queries)


def _slide(pair: tuple[int, int], number: int, digits: Digits, generator: np.random.Generator) -> bytes:
    """A slide's PNG: two digits, and below them its number and what they are."""
    figure = in_grid([digits.tile(int(generator.choice(digits.by_label[label])), None, "") for label in pair], 2)
    slide = Image.fromarray(figure.draw()).resize(_SIZE, Image.Resampling.BICUBIC)
    caption = f"{number + 1}: {WORDS[pair[0]]}, {WORDS[pair[1]]}"
    ImageDraw.Draw(slide).text(_CAPTION_PLACE, caption, _CAPTION_COLOUR, ImageFont.load_default(_CAPTION_SIZE))
    buffer = io.BytesIO()
    slide.save(buffer, "PNG")
    return buffer.getvalue()
