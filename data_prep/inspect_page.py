"""The page that `data_prep.inspect` writes. Texts and images come from data, so nothing of them is trusted."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from data_prep.statistics import Histogram, SubsetStatistics
from vlm2vec.errors import InputError
from vlm2vec.images.decode import open_image
from vlm2vec.shards import Sample
from vlm2vec.shards.entry import item_name
from vlm2vec.shards.schema import NEGATIVE, POSITIVE, QUERY, Item

_THUMBNAIL_PIXELS, _ONE_OF_SEVERAL_PIXELS = 180, 84  # the longer side
_TEXT_CHARACTERS = 400
_SIDE_NAMES = {QUERY: "query", POSITIVE: "target", NEGATIVE: "hard negative"}

# What the browser may do with the page, should a text get through the escaping after all: nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { --ink: #1d2733; --soft: #5d6b7a; --line: #dde3e9; --bar: #3b6fb6; --paper: #fff; --ground: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ee; --soft: #98a5b3; --line: #34404c; --bar: #6b9be0; --paper: #1b232c; --ground: #12181f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", "Liberation Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 20px; margin: 0; } h3 { font-size: 13px; margin: 0 0 6px; }
.soft { color: var(--soft); } .small { font-size: 13px; }
code { font: 12px/1.5 ui-monospace, "Liberation Mono", monospace; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; background: var(--paper); margin-top: 20px;
  border: 1px solid var(--line); border-radius: 8px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: 13px; } th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; font-weight: 600; } td a { color: inherit; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 20px;
  margin-top: 24px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 20px; margin: 16px 0 4px; }
svg { display: block; width: 100%; height: auto; } rect { fill: var(--bar); }
svg text { font-size: 10px; fill: var(--soft); } svg line { stroke: var(--line); }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(480px, 1fr)); gap: 14px; margin-top: 16px; }
.pair { border: 1px solid var(--line); border-radius: 6px; padding: 12px; }
.sides { display: flex; flex-wrap: wrap; gap: 14px; } .side { flex: 1 1 140px; min-width: 0; }
.images { display: flex; flex-wrap: wrap; gap: 6px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
img { display: block; max-width: 100%; border-radius: 3px; margin-bottom: 6px; background: #8884; }
.tiny { image-rendering: pixelated; }
.error { color: #b3261e; overflow-wrap: anywhere; }
@media (max-width: 560px) { .pairs { grid-template-columns: 1fr; } .sides { flex-direction: column; } }
"""


def page(title: str, fingerprint: str, subsets: Sequence[SubsetStatistics]) -> str:
    """The whole page.

    Args:
        title: the data set's name.
        fingerprint: the manifest's.
        subsets: in order.
    """
    rows, size = sum(subset.rows for subset in subsets), sum(subset.bytes for subset in subsets)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>
<h1>{html.escape(title)}</h1>
<div class="soft">{rows:,} pairs in {len(subsets)} subsets, {_megabytes(size)}</div>
<code class="soft">fingerprint {html.escape(fingerprint)}</code>
{_overview(subsets)}
{"".join(_section(subset) for subset in subsets)}
</main></body></html>
"""


def _overview(subsets: Sequence[SubsetStatistics]) -> str:
    heads = ("subset", "pairs", "share", "query", "target", "hard negatives", "rows left out", "size")
    total = sum(subset.rows for subset in subsets)
    lines = []
    for subset in subsets:
        negatives = sum(subset.sides[NEGATIVE].modalities.values()) if NEGATIVE in subset.sides else 0
        cells = (
            f'<a href="#{html.escape(subset.name)}">{html.escape(subset.name)}</a>',
            f"{subset.rows:,}",
            f"{subset.rows / total:.1%}",
            *(" or ".join(subset.sides[side].modalities) for side in (QUERY, POSITIVE)),
            f"{negatives:,}",
            f"{sum(subset.skipped.values()):,}",
            _megabytes(subset.bytes),
        )
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    left_out = sum(sum(subset.skipped.values()) for subset in subsets)
    size = sum(subset.bytes for subset in subsets)
    lines.append(f"<td>all</td><td>{total:,}</td>{'<td></td>' * 4}<td>{left_out:,}</td><td>{_megabytes(size)}</td>")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _section(subset: SubsetStatistics) -> str:
    facts = [f"{subset.rows:,} pairs", _megabytes(subset.bytes)]
    facts += [f"{count:,} rows left out: {reason}" for reason, count in subset.skipped.items()]
    charts = []
    for side, statistics in subset.sides.items():
        name = _SIDE_NAMES[side]
        charts.append(_chart(f"{name}: text, {subset.length_unit}", statistics.text_lengths))
        charts.append(_chart(f"{name}: images, longer side in pixels", statistics.image_sizes))
    pairs = "".join(_pair(example) for example in subset.examples)
    return f"""<section id="{html.escape(subset.name)}"><h2>{html.escape(subset.name)}</h2>
<div class="soft">{html.escape(", ".join(facts))}</div>
<div class="charts">{"".join(charts)}</div><div class="pairs">{pairs}</div></section>"""


def _chart(title: str, histogram: Histogram) -> str:
    """Bars, each above the first value of its bin; nothing where there is nothing."""
    if not histogram.counts:
        return ""
    # A single bar over the whole width would look like a background.
    width, height, slots = 360, 120, max(len(histogram.counts), 8)
    step, highest = width / slots, max(histogram.counts)
    parts = []
    for number, count in enumerate(histogram.counts):
        tall, left = 84 * count / highest, number * step
        parts.append(
            f'<rect x="{left + 2:.1f}" y="{100 - tall:.1f}" width="{step - 4:.1f}" height="{tall:.1f}" rx="1.5">'
            f"<title>{histogram.label(number)}: {count:,}</title></rect>"
        )
        label = f"{histogram.starts[number]:,}"
        parts.append(f'<text x="{left + step / 2:.1f}" y="113" text-anchor="middle">{label}</text>')
        if count == highest:
            parts.append(f'<text x="{left + step / 2:.1f}" y="11" text-anchor="middle">{count:,}</text>')
    return (
        f"<div><h3>{html.escape(title)}</h3>"
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
        f'<line x1="0" y1="100.5" x2="{width}" y2="100.5"/>{"".join(parts)}</svg>'
        f'<div class="soft small">median {histogram.median:,}, largest {histogram.largest:,}</div></div>'
    )


def _pair(example: Sample | str) -> str:
    if isinstance(example, str):
        return f'<div class="pair error">{html.escape(example)}</div>'
    items = [(_SIDE_NAMES[QUERY], example.query), (_SIDE_NAMES[POSITIVE], example.positive)]
    items += [(item_name(_SIDE_NAMES[NEGATIVE], number), item) for number, item in enumerate(example.negatives)]
    sides = "".join(
        f'<div class="side"><h3 class="soft">{name}</h3>{_item(item, example.key)}</div>' for name, item in items
    )
    return (
        f'<div class="pair"><div class="sides">{sides}</div><code class="soft">{html.escape(example.key)}</code></div>'
    )


def _item(item: Item, name: str) -> str:
    parts = []
    images = "".join(_thumbnail(image, name, len(item.images)) for image in item.images)
    if images:
        parts.append(f'<div class="images">{images}</div>')
    if item.text:
        text = item.text[:_TEXT_CHARACTERS] + ("…" if len(item.text) > _TEXT_CHARACTERS else "")
        parts.append(f'<div class="text"><bdi>{html.escape(_printable(text))}</bdi></div>')
    return "".join(parts)


def _thumbnail(data: bytes, name: str, number_of: int) -> str:
    """A thumbnail inside the page, of an item with so many images; small ones are drawn larger."""
    longest = _THUMBNAIL_PIXELS if number_of == 1 else _ONE_OF_SEVERAL_PIXELS
    try:
        image = open_image(data, name)
    except InputError as error:
        return f'<div class="error">{html.escape(str(error))}</div>'
    width, height = image.size
    image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    is_small = max(width, height) < longest
    image.save(buffer, "PNG" if is_small else "JPEG")
    kind = "png" if is_small else "jpeg"
    scale = max(1, (longest // 2) // max(width, height)) if is_small else 1
    encoded = base64.b64encode(buffer.getvalue()).decode()
    size = f"{width} x {height} pixels"
    look = f'width="{image.width * scale}"{" class=tiny" if scale > 1 else ""} alt="{size}" title="{size}"'
    return f'<img src="data:image/{kind};base64,{encoded}" {look}>'


def _printable(text: str) -> str:
    """Control characters, which may hide or reorder what is shown, as their code points."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else f"\\u{ord(character):04x}"
        for character in text.strip("\n")
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
