"""The page that `data_prep.inspect` writes. Texts and images come from data, so nothing of them is trusted."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.inspect_mined import MinedExample, MinedStatistics
from data_prep.statistics import Cosines, Histogram, SubsetStatistics
from vlm2vec.errors import InputError
from vlm2vec.images.decode import open_image
from vlm2vec.messages.page import render_page, shown_text
from vlm2vec.messages.words import counted
from vlm2vec.mined.format import Mined
from vlm2vec.shards import Sample
from vlm2vec.shards.entry import item_name
from vlm2vec.shards.schema import NEGATIVE, POSITIVE, QUERY, Item

_TEMPLATES = Path(__file__).parent / "templates"
# Longer side of thumbnails in pixels, for an item's only image and for one of several; an image that is smaller is
# enlarged by a whole number, up to the last of these.
_PIXELS, _ONE_OF_SEVERAL_PIXELS, _ENLARGED_PIXELS = 400, 180, 192
_TEXT_CHARACTERS = 400
SIDE_NAMES = {QUERY: "query", POSITIVE: "target", NEGATIVE: "hard negative"}
# Of a chart, in the units of its view box; a few bars over the whole width would look like a background.
_WIDTH, _BAR_HEIGHT, _BASE, _LEAST_SLOTS = 360, 84, 100, 8


@dataclass(frozen=True)
class Bar:
    """A bar of a chart: its geometry, the first value of its bin, and all of them with their count."""

    x: float
    y: float
    width: float
    height: float
    middle: float
    tick: str
    label: str
    count: str


@dataclass(frozen=True)
class Chart:
    """A histogram, or only a note where all values are the same."""

    title: str
    bars: tuple[Bar, ...]
    note: str


@dataclass(frozen=True)
class Thumbnail:
    """An image inside the page: data URI, width in CSS pixels, size of the original; or what is wrong with it."""

    source: str = ""
    width: int = 0
    size: str = ""
    is_enlarged: bool = False
    error: str = ""


@dataclass(frozen=True)
class Side:
    """An item of a pair: what it is, the teacher's numbers on it, images and text; or why it cannot be shown."""

    name: str
    images: tuple[Thumbnail, ...] = ()
    text: str = ""
    error: str = ""
    score: str = ""


@dataclass(frozen=True)
class Pair:
    """A pair with its hard negatives, and those that were mined; or why it cannot be shown."""

    key: str = ""
    sides: tuple[Side, ...] = ()
    mined: tuple[Side, ...] = ()
    mined_note: str = ""
    error: str = ""


@dataclass(frozen=True)
class Section:
    """A subset."""

    name: str
    facts: str
    charts: tuple[Chart, ...]
    mined_facts: str
    mined_charts: tuple[Chart, ...]
    pairs: tuple[Pair, ...]

    @property
    def is_wide(self) -> bool:
        """Whether a pair has images that need the page's whole width."""
        sides = [side for pair in self.pairs for side in pair.sides]
        return any(image.width > _ENLARGED_PIXELS for side in sides for image in side.images)


def page(
    title: str,
    fingerprint: str,
    subsets: Sequence[SubsetStatistics],
    mined: Mined | None = None,
    statistics: Sequence[MinedStatistics | None] = (),
) -> str:
    """The whole page.

    Args:
        title: The dataset's name.
        fingerprint: The manifest's.
        subsets: In order.
        mined: The sidecar, if it is to be shown.
        statistics: What was mined of each subset.
    """
    rows, size = sum(subset.rows for subset in subsets), sum(subset.bytes for subset in subsets)
    statistics = statistics or [None] * len(subsets)
    return render_page(
        _TEMPLATES,
        "inspect.html.j2",
        heading=title,
        about=f"{counted(rows, 'pair')} in {counted(len(subsets), 'subset')}, {_megabytes(size)}",
        fingerprint=fingerprint,
        mined=mined,
        overview=_overview(subsets),
        sections=[
            _section(subset, found, mined is not None) for subset, found in zip(subsets, statistics, strict=True)
        ],
    )


def _overview(subsets: Sequence[SubsetStatistics]) -> list[tuple[str, ...]]:
    """A line for each subset, and one for all of them."""
    total = sum(subset.rows for subset in subsets)
    lines: list[tuple[str, ...]] = []
    for subset in subsets:
        lines.append(
            (
                subset.name,
                f"{subset.rows:,}",
                f"{subset.rows / total:.1%}",
                *(" or ".join(subset.sides[side].modalities) for side in (QUERY, POSITIVE)),
                f"{subset.num_negatives:,}",
                f"{subset.num_skipped:,}",
                _megabytes(subset.bytes),
            )
        )
    left_out = sum(subset.num_skipped for subset in subsets)
    size = sum(subset.bytes for subset in subsets)
    lines.append(("all", f"{total:,}", "", "", "", "", f"{left_out:,}", _megabytes(size)))
    return lines


def _section(subset: SubsetStatistics, mined: MinedStatistics | None, has_mined: bool) -> Section:
    facts = [counted(subset.rows, "pair"), _megabytes(subset.bytes)]
    facts += [f"{counted(count, 'row')} left out: {reason}" for reason, count in subset.skipped.items()]
    charts = []
    for side, statistics in subset.sides.items():
        name = SIDE_NAMES[side]
        charts.append(_chart(f"{name}: text, {subset.length_unit}", statistics.text_lengths))
        charts.append(_chart(f"{name}: images, longer side in pixels", statistics.image_sizes))
    examples = [None] * len(subset.examples) if mined is None else mined.examples
    return Section(
        name=subset.name,
        facts=", ".join(facts),
        charts=tuple(chart for chart in charts if chart is not None),
        mined_facts=("not mined" if has_mined else "") if mined is None else _mined_facts(mined),
        mined_charts=() if mined is None else _mined_charts(mined),
        pairs=tuple(_pair(example, found) for example, found in zip(subset.examples, examples, strict=True)),
    )


def _mined_facts(mined: MinedStatistics) -> str:
    facts = [
        counted(mined.num_negatives, "hard negative"),
        f"{counted(mined.rows_without, 'row')} without one",
        counted(mined.num_false_negatives, "false negative"),
        mined.clusters,
    ]
    return "; ".join(facts)


def _mined_charts(mined: MinedStatistics) -> tuple[Chart, ...]:
    charts = [
        _chart("cosine of query and target", mined.positives),
        _chart("cosine of query and hardest negative", mined.hardest),
        _chart("margin: target above hardest negative", mined.margins),
        _chart("hard negatives per row, where there are any", mined.negatives_per_row),
    ]
    return tuple(chart for chart in charts if chart is not None)


def _chart(title: str, histogram: Histogram | Cosines) -> Chart | None:
    """Bars, each above the first value of its bin; None where there is nothing."""
    counts = histogram.counts
    if not counts:
        return None
    if isinstance(histogram, Histogram):
        if histogram.only is not None:
            return Chart(
                title, (), f"{histogram.only:,} in all {sum(counts):,}" if sum(counts) > 1 else f"{histogram.only:,}"
            )
        note = f"median {histogram.median:,}, largest {histogram.largest:,}"
        ticks = [f"{start:,}" for start in histogram.starts]
    else:
        numbers = (histogram.smallest, histogram.median, histogram.largest)
        note = "smallest {}, median {}, largest {}".format(*map(histogram.shown, numbers))
        ticks = [f"{start:.2f}" for start in histogram.starts]
    step, highest = _WIDTH / max(len(counts), _LEAST_SLOTS), max(counts)
    bars = []
    for number, count in enumerate(counts):
        tall, left = _BAR_HEIGHT * count / highest, number * step
        label = f"{histogram.label(number)}: {count:,}"
        shown = f"{count:,}" if count == highest else ""
        bars.append(Bar(left + 2, _BASE - tall, step - 4, tall, left + step / 2, ticks[number], label, shown))
    return Chart(title, tuple(bars), note)


def _pair(example: Sample | str, mined: MinedExample | None) -> Pair:
    if isinstance(example, str):
        return Pair(error=shown_text(example))
    items = [(SIDE_NAMES[QUERY], example.query), (SIDE_NAMES[POSITIVE], example.positive)]
    items += [(item_name(SIDE_NAMES[NEGATIVE], number), item) for number, item in enumerate(example.negatives)]
    sides = [_side(name, item, example.key) for name, item in items]
    if mined is None:
        return Pair(example.key, tuple(sides))
    sides[1] = _side(*items[1], example.key, f"cosine {mined.positive_score:.3f}")
    negatives = tuple(
        _side(
            f"mined {negative.rank}",
            negative.target,
            example.key,
            f"{negative.score:.3f}, margin {negative.margin:.3f}",
        )
        for negative in mined.negatives
    )
    return Pair(example.key, tuple(sides), negatives, mined_note(mined))


def mined_note(mined: MinedExample) -> str:
    """What of a row's mined negatives is not shown."""
    hidden = mined.num_negatives - len(mined.negatives)
    notes = ["no mined negative"] if not mined.num_negatives else [f"{hidden} more mined"] if hidden else []
    if mined.num_false_negatives:
        notes.append(counted(mined.num_false_negatives, "false negative"))
    return ", ".join([*notes, f"cluster {mined.cluster}" if mined.cluster >= 0 else "no cluster"])


def _side(name: str, item: Item | str, key: str, score: str = "") -> Side:
    if isinstance(item, str):
        return Side(name, error=shown_text(item), score=score)
    images = tuple(_thumbnail(image, key, len(item.images)) for image in item.images)
    text = item.text[:_TEXT_CHARACTERS] + ("…" if len(item.text) > _TEXT_CHARACTERS else "")
    return Side(name, images, shown_text(text), score=score)


def _thumbnail(data: bytes, name: str, number_of: int) -> Thumbnail:
    """A thumbnail of one of an item's `number_of` images; a small image is shown enlarged."""
    limit = _PIXELS if number_of == 1 else _ONE_OF_SEVERAL_PIXELS
    try:
        image = open_image(data, name)
    except InputError as error:
        return Thumbnail(error=shown_text(str(error)))
    size = f"{image.width} x {image.height} pixels"
    longest = max(image.size)
    is_small = longest <= limit
    image.thumbnail((limit, limit))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if is_small else "JPEG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    scale = max(1, min(_ENLARGED_PIXELS, limit) // longest)
    kind = "png" if is_small else "jpeg"
    return Thumbnail(f"data:image/{kind};base64,{encoded}", image.width * scale, size, scale > 1)


def _megabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
