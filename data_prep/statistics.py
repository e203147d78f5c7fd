"""Statistics of converted shards: numbers from their indexes, and a few pairs from their tars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlm2vec.errors import InputError
from vlm2vec.shards import Sample, ShardSet
from vlm2vec.shards.columns import Columns
from vlm2vec.shards.schema import NEGATIVE, POSITIVE, QUERY, SIDES

# Counting tokens reads the tars, so for a large subset only this many rows, spread evenly, are counted.
MAX_TOKENIZED_ROWS = 2000

_LINEAR_BINS = 12
# Of bins of cosines; differences of two lie between -2 and 2.
_COSINE_BINS_PER_UNIT = (100, 50, 20, 10, 5, 2)
# Of a bin: a value that is a bin's first one but for rounding belongs to it.
_ROUNDING = 1e-5

CountTokens = Callable[[list[str]], list[int]]


@dataclass(frozen=True)
class Histogram:
    """Counts of integers in bins of equal width, or of doubling width if the values span a wide range.

    Attributes:
        starts: The first value of each bin, and finally the end of the last bin (exclusive).
        counts: The count of each bin; empty if there are no values.
        median: The median of the values; 0 if there are none.
        largest: The largest value; 0 if there are none.
    """

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    median: int
    largest: int

    @staticmethod
    def of(values: npt.NDArray[np.int64]) -> Histogram:
        """Counts values of at least 1."""
        if not len(values):
            return Histogram((0,), (), 0, 0)
        starts = _bin_starts(int(values.min()), int(values.max()))
        places = np.searchsorted(starts, values, side="right") - 1
        counts = np.bincount(places, minlength=len(starts) - 1)
        return Histogram(tuple(starts), tuple(counts.tolist()), int(np.median(values)), int(values.max()))

    @property
    def only(self) -> int | None:
        """The value, if all are the same; a single bin holds no two values."""
        return self.largest if len(self.counts) == 1 else None

    def label(self, number: int) -> str:
        """A bin's values, e.g. "4-7"."""
        first, last = self.starts[number], self.starts[number + 1] - 1
        return str(first) if first == last else f"{first:,}\N{EN DASH}{last:,}"


def _bin_starts(smallest: int, largest: int) -> list[int]:
    """At most 12 bins of a round width, or doubling bins if the largest value is far from the smallest."""
    if largest >= 8 * smallest and largest >= _LINEAR_BINS:
        first = smallest.bit_length() - 1
        return [2**power for power in range(first, largest.bit_length() + 1)]
    width = next(width for width in _round_widths() if largest // width - smallest // width < _LINEAR_BINS)
    return list(range(smallest // width * width, largest + width + 1, width))[
        : largest // width - smallest // width + 2
    ]


@dataclass(frozen=True)
class Cosines:
    """Counts of cosines, or of differences of cosines, in bins of equal width.

    Attributes:
        starts: First value of each bin, and behind the last bin the value that no longer belongs to it.
        counts: Of each bin; none if there are no values.
        median: Of the values, None if there are none.
        smallest, largest: Of the values, 0 if there are none.
    """

    starts: tuple[float, ...]
    counts: tuple[int, ...]
    median: float | None
    smallest: float
    largest: float

    @staticmethod
    def of(values: npt.NDArray[np.float32]) -> Cosines:
        """Counts values, which are finite."""
        if not len(values):
            return Cosines((0.0,), (), None, 0.0, 0.0)
        for bins in _COSINE_BINS_PER_UNIT:
            places = np.floor(values.astype(np.float64) * bins + _ROUNDING).astype(np.int64)
            first = int(places.min())
            if places.max() - first < _LINEAR_BINS:
                break
        counts = np.bincount(places - first)
        starts = tuple((first + number) / bins for number in range(len(counts) + 1))
        median, smallest, largest = (float(pick(values)) for pick in (np.median, np.min, np.max))
        return Cosines(starts, tuple(counts.tolist()), median, smallest, largest)

    def label(self, number: int) -> str:
        """A bin's values, e.g. "0.10 to 0.15"."""
        return f"{self.starts[number]:.2f} to {self.starts[number + 1]:.2f}"

    @staticmethod
    def shown(value: float | None) -> str:
        """A cosine for people."""
        return "" if value is None else f"{value:.3f}"


def _round_widths() -> Iterator[int]:
    for power in count():
        yield from (10**power, 2 * 10**power, 5 * 10**power)


@dataclass(frozen=True)
class SideStatistics:
    """One side of a subset's pairs.

    Attributes:
        modalities: Number of items by content: "T" (text), "I" (image), "I+T"; "nI", "nI+T" with several images.
        text_lengths: Lengths of the texts, in the unit that `SubsetStatistics` names.
        image_sizes: The longer side of each image, in pixels.
    """

    modalities: dict[str, int]
    text_lengths: Histogram
    image_sizes: Histogram


@dataclass(frozen=True)
class SubsetStatistics:
    """One subset.

    Attributes:
        name: The subset's name.
        rows: Number of samples.
        skipped: Number of source rows left out, by reason.
        bytes: Size of its tars in bytes.
        length_unit: The unit of text lengths: "characters", "tokens", or "tokens of 2,000 rows".
        sides: "query", "positive" and, if any row has one, "negative".
        examples: A few pairs, spread evenly; for a pair that cannot be read, the error message.
    """

    name: str
    rows: int
    skipped: dict[str, int]
    bytes: int
    length_unit: str
    sides: dict[str, SideStatistics]
    examples: tuple[Sample | str, ...]

    @property
    def num_negatives(self) -> int:
        """Number of hard negatives in the data."""
        return sum(self.sides[NEGATIVE].modalities.values()) if NEGATIVE in self.sides else 0

    @property
    def num_skipped(self) -> int:
        """Number of source rows left out."""
        return sum(self.skipped.values())


def subset_statistics(
    shards: ShardSet,
    name: str,
    skipped: dict[str, int],
    num_bytes: int,
    examples: int,
    count_tokens: CountTokens | None,
) -> SubsetStatistics:
    """Collects a subset's numbers and examples.

    Args:
        shards: The shards.
        name: The subset's name.
        skipped: Number of rows left out, by reason, from the manifest.
        num_bytes: Size of its tars in bytes.
        examples: Number of pairs to read.
        count_tokens: Returns the number of tokens of each text; None: lengths are in characters.

    Raises:
        InputError: A sample cannot be read while tokens are counted.
    """
    columns, rows = shards.columns(name), shards.num_samples[name]
    lengths = {side: columns[f"{side}_text_length"].astype(np.int64) for side in SIDES}
    unit = "characters"
    if count_tokens is not None:
        positions = spread(rows, MAX_TOKENIZED_ROWS)
        lengths = _token_lengths([shards.read(name, position) for position in positions], count_tokens)
        unit = "tokens" if len(positions) == rows else f"tokens of {len(positions):,} rows"
    sides = {side: _side(columns, side, lengths[side]) for side in SIDES}
    if not len(columns[f"{NEGATIVE}_hash"]):
        del sides[NEGATIVE]
    pairs = tuple(_example(shards, name, position) for position in spread(rows, examples))
    return SubsetStatistics(name, rows, skipped, num_bytes, unit, sides, pairs)


def _side(columns: Columns, side: str, lengths: npt.NDArray[np.int64]) -> SideStatistics:
    has_text, num_images = columns[f"{side}_text_length"] > 0, np.diff(columns[f"{side}_image_starts"])
    counts = {"T": has_text & (num_images == 0)}
    for name, having in (("I", num_images == 1), ("nI", num_images > 1)):
        counts |= {name: having & ~has_text, f"{name}+T": having & has_text}
    longer = np.maximum(columns[f"{side}_widths"], columns[f"{side}_heights"]).astype(np.int64)
    return SideStatistics(
        modalities={name: int(mask.sum()) for name, mask in counts.items() if mask.any()},
        text_lengths=Histogram.of(lengths[lengths > 0]),
        image_sizes=Histogram.of(longer),
    )


def _token_lengths(samples: list[Sample], count_tokens: CountTokens) -> dict[str, npt.NDArray[np.int64]]:
    texts = {
        QUERY: [sample.query.text for sample in samples],
        POSITIVE: [sample.positive.text for sample in samples],
        NEGATIVE: [negative.text for sample in samples for negative in sample.negatives],
    }
    return {side: np.array(count_tokens(members), np.int64) for side, members in texts.items()}


def _example(shards: ShardSet, name: str, position: int) -> Sample | str:
    try:
        return shards.read(name, position)
    except InputError as error:
        return str(error)


def spread(rows: int, wanted: int) -> list[int]:
    """At most `wanted` positions, spread evenly and including the first."""
    number_of = min(rows, wanted)
    return [number * rows // number_of for number in range(number_of)]


def token_counter(folder: Path) -> CountTokens:
    """Counts text tokens with a checkpoint's tokenizer. Image tokens, which the processor decides, are not counted.

    Raises:
        InputError: The folder has no readable tokenizer.json.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library has no exception type of its own
        raise InputError(f"{folder / 'tokenizer.json'}: cannot read the tokenizer ({error})") from error
    return lambda texts: [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
