"""A few pairs of a run's first batch, to see with one's own eyes what it is trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlm2vec.batches.replacement import GlobalBatch
from vlm2vec.errors import InputError
from vlm2vec.images.decode import open_image
from vlm2vec.shards import DamagedSampleError, Item, ShardSet

SHOWN_PAIRS = 4
# Side of an item's square in pixels, what separates the two of a pair, and the grey where nothing is.
_SIDE, _GAP, _GREY = 320, 16, 224


@dataclass(frozen=True)
class ShownPair:
    """A pair for whoever watches.

    Attributes:
        name: Its key in the shards.
        subset: Its subset.
        query: The query's text.
        positive: The target's text.
        image: The query's images, or grey, beside the target's, uint8 (height, width, 3); None if neither has any.
            Several of one item share its square.
    """

    name: str
    subset: str
    query: str
    positive: str
    image: npt.NDArray[np.uint8] | None


def first_pairs(batch: GlobalBatch, shards: ShardSet, count: int = SHOWN_PAIRS) -> list[ShownPair]:
    """The first pairs of a global batch; those that cannot be read are left out, the loader reports them."""
    subsets = [shards.subsets[number] for number in batch.subsets[:count].tolist()]
    places = list(zip(subsets, batch.positions[:count].tolist(), strict=True))
    found = shards.read_many(dict.fromkeys(places))
    pairs = []
    for place in places:
        sample = found[place]
        if isinstance(sample, DamagedSampleError):
            continue
        try:
            image = _side_by_side(sample.query, sample.positive, sample.key)
        except InputError:
            continue
        pairs.append(ShownPair(sample.key, sample.subset, sample.query.text, sample.positive.text, image))
    return pairs


def _side_by_side(query: Item, positive: Item, name: str) -> npt.NDArray[np.uint8] | None:
    if not query.images and not positive.images:
        return None
    canvas = Image.new("RGB", (2 * _SIDE + _GAP, _SIDE), (_GREY, _GREY, _GREY))
    for item, left in ((query, 0), (positive, _SIDE + _GAP)):
        columns = math.ceil(math.sqrt(len(item.images)))
        for number, data in enumerate(item.images):
            image, cell = open_image(data, name), _SIDE // columns
            scale = cell / max(image.size)
            width, height = (max(1, round(scale * side)) for side in image.size)
            # An image of a few pixels is shown as these pixels.
            how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
            row, column = divmod(number, columns)
            place = (left + column * cell + (cell - width) // 2, row * cell + (cell - height) // 2)
            canvas.paste(image.resize((width, height), how), place)
    return np.asarray(canvas)
