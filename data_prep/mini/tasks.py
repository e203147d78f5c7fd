"""The miniature's tasks: each draws a query, its target and ranked distractors from one split's images.

Training rows and evaluation rows come from the same drawing function: the first distractor is the hard negative of a
training row, and all distractors are the wrong candidates of an evaluation row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np

from data_prep.mini.drawing import INKS, PHOTOS, Digits, DrawnImage, in_grid, photo_crop
from data_prep.mini.prompts import TARGET_CAPTIONED, TARGET_CROP, TARGET_IMAGE, Prompt

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Entry:
    """One side of a pair: text, image, or both."""

    text: str = ""
    image: DrawnImage | None = None


@dataclass(frozen=True)
class Draft:
    """A query without its instruction, its target, and distractors, the hardest first."""

    question: str
    image: DrawnImage | None
    target: Entry
    distractors: tuple[Entry, ...]


@dataclass
class Source:
    """The images and random generator from which tasks are drawn.

    Attributes:
        split: "train" or "test"; their digits and photograph blocks are disjoint.
        gallery_size: How many handwritings of a digit occur among candidates; few in evaluation, so that candidates
            repeat in many rows and each is encoded only once.
    """

    split: str
    rng: np.random.Generator
    digits: Digits
    gallery_size: int
    look: str = ""
    mirrored: bool = False
    columns: int = 2

    def scan(self, label: int, gallery: bool = False, other_than: int | None = None) -> int:
        """A random handwriting of a digit, or one of those that occur among candidates."""
        scans = self.digits.by_label[label][: self.gallery_size if gallery else None]
        scan = scans[self.rng.integers(len(scans))]
        return self.scan(label, gallery, other_than) if scan == other_than else scan

    def tile(self, label: int, ink: str | None = None) -> DrawnImage:
        """A random handwriting of a digit, as an image."""
        return self.digits.tile(self.scan(label), ink, self.look)

    def candidate(self, label: int, ink: str | None = None) -> DrawnImage:
        """The same, from the gallery."""
        return self.digits.tile(self.scan(label, gallery=True), ink, self.look)

    def labels(self, count: int) -> list[int]:
        """Different digits, in random order."""
        return [int(label) for label in self.rng.permutation(10)[:count]]

    def ink(self) -> str:
        """The name of a random ink."""
        return list(INKS)[self.rng.integers(len(INKS))]

    def shuffled(self, items: Iterable[Entry]) -> tuple[Entry, ...]:
        """The same items in random order."""
        listed = list(items)
        return tuple(listed[i] for i in self.rng.permutation(len(listed)))


def draw_digit(source: Source, count: int) -> Draft:
    """A digit -> its word."""
    label, *others = source.labels(count + 1)
    return Draft("", source.tile(label), Entry(WORDS[label]), tuple(Entry(WORDS[other]) for other in others))


def draw_photo(source: Source, count: int) -> Draft:
    """A crop of a photograph -> what the photograph shows."""
    name, *others = (list(PHOTOS)[i] for i in source.rng.permutation(len(PHOTOS))[: count + 1])
    crop = photo_crop(name, source.split, source.rng, source.mirrored)
    return Draft("", crop, Entry(name), tuple(Entry(other) for other in others))


def draw_pair_question(source: Source, count: int) -> Draft:
    """Two digits, which is on the left or right -> its word; the hardest distractor is the other one."""
    left, right, *others = source.labels(count + 1)
    image = in_grid([source.tile(left), source.tile(right)], columns=2)
    side, answer, other = ("left", left, right) if source.rng.random() < 0.5 else ("right", right, left)
    wrong = tuple(Entry(WORDS[label]) for label in (other, *others))
    return Draft(f"Which digit is on the {side}?", image, Entry(WORDS[answer]), wrong)


def draw_colour_question(source: Source, count: int) -> Draft:
    """A coloured digit, its colour or its value -> the word; the hardest distractor answers the other question."""
    label, ink = source.labels(1)[0], source.ink()
    answers = {"What is the colour of the digit?": ink, "What is the value of the digit?": WORDS[label]}
    question = list(answers)[source.rng.integers(len(answers))]
    answer = answers.pop(question)
    (misread,) = answers.values()
    rest = source.shuffled(Entry(word) for word in (*WORDS, *INKS) if word not in (answer, misread))
    return Draft(question, source.tile(label, ink), Entry(answer), (Entry(misread), *rest)[:count])


def _pair_caption(left: int, right: int) -> str:
    return f"a {WORDS[left]} to the left of a {WORDS[right]}"


def _wrong_pairs(source: Source, left: int, right: int, count: int) -> list[tuple[int, int]]:
    """The swapped pair first, then pairs that share a digit at its place, then any."""
    pairs = [(a, b) for a, b in product(range(10), repeat=2) if a != b and (a, b) not in ((left, right), (right, left))]
    pairs = [pairs[i] for i in source.rng.permutation(len(pairs))]
    near = [pair for pair in pairs if pair[0] == left or pair[1] == right][: count // 3]
    return [(right, left), *near, *(pair for pair in pairs if pair not in near)][:count]


def draw_pair_by_caption(source: Source, count: int) -> Draft:
    """A caption -> the image of two digits."""
    left, right = source.labels(2)
    pairs = [(left, right), *_wrong_pairs(source, left, right, count)]
    target, *wrong = (
        Entry(TARGET_IMAGE, in_grid([source.candidate(a), source.candidate(b)], columns=2)) for a, b in pairs
    )
    return Draft(_pair_caption(left, right), None, target, tuple(wrong))


def draw_caption_of_pair(source: Source, count: int) -> Draft:
    """The image of two digits -> its caption."""
    left, right = source.labels(2)
    image = in_grid([source.tile(left), source.tile(right)], columns=2)
    wrong = tuple(Entry(_pair_caption(a, b)) for a, b in _wrong_pairs(source, left, right, count))
    return Draft("", image, Entry(_pair_caption(left, right)), wrong)


def draw_same_digit(source: Source, count: int) -> Draft:
    """A digit -> the same digit in another handwriting."""
    label, *others = source.labels(count + 1)
    target_scan = source.scan(label, gallery=True)
    query_scan = source.scan(label, other_than=target_scan)
    query, target = (source.digits.tile(scan, None, source.look) for scan in (query_scan, target_scan))
    wrong = tuple(Entry(TARGET_IMAGE, source.candidate(other)) for other in others)
    return Draft("", query, Entry(TARGET_IMAGE, target), wrong)


def _wrong_coloured(source: Source, label: int, ink: str, count: int) -> list[tuple[int, str]]:
    """The right digit in wrong inks, wrong digits in the right ink, then wrong digits in wrong inks."""
    same_digit = [(label, other) for other in INKS if other != ink]
    same_ink = [(other, ink) for other in source.labels(10) if other != label]
    neither = [(other, wrong) for other in source.labels(10) for wrong in INKS if other != label and wrong != ink]
    return [*same_digit, *same_ink, *neither][:count]


def draw_recolour(source: Source, count: int) -> Draft:
    """A coloured digit and another colour's name -> the same handwriting in that colour."""
    label, ink = source.labels(1)[0], source.ink()
    scan = source.scan(label, gallery=True)
    inks = [name for name in INKS if name != ink]
    before = inks[source.rng.integers(len(inks))]
    query, target = (source.digits.tile(scan, name, source.look) for name in (before, ink))
    wrong = [
        source.digits.tile(scan, name, source.look) if other == label else source.candidate(other, name)
        for other, name in _wrong_coloured(source, label, ink, count)
    ]
    return Draft(
        f"the same digit in {ink}",
        query,
        Entry(TARGET_IMAGE, target),
        tuple(Entry(TARGET_IMAGE, image) for image in wrong),
    )


def draw_captioned(source: Source, count: int) -> Draft:
    """A question -> an image that shows the digit with a text that tells the colour: neither suffices alone."""
    label, ink = source.labels(1)[0], source.ink()
    target, *wrong = (
        Entry(TARGET_CAPTIONED.format(caption=f"a digit that was written in {name}"), source.candidate(digit))
        for digit, name in [(label, ink), *_wrong_coloured(source, label, ink, count)]
    )
    return Draft(f"Where is a {WORDS[label]} that was written in {ink}?", None, target, tuple(wrong))


def draw_grounding(source: Source, count: int) -> Draft:
    """A mosaic of four coloured digits and a label -> the crop; among the distractors its neighbours and its like."""
    labels, inks = source.labels(4), [source.ink() for _ in range(4)]
    tiles = [source.candidate(label, ink) for label, ink in zip(labels, inks, strict=True)]
    sought = int(source.rng.integers(4))
    neighbours = [tile for place, tile in enumerate(tiles) if place != sought]
    foreign_inks = [name for name in INKS if name != inks[sought]]
    alike = [source.candidate(labels[sought], foreign_inks[i]) for i in source.rng.permutation(len(foreign_inks))[:2]]
    elsewhere = [source.candidate(label, source.ink()) for label in source.labels(10) if label not in labels]
    wrong = tuple(Entry(TARGET_CROP, image) for image in (*neighbours, *alike, *elsewhere)[:count])
    mosaic = in_grid(tiles, source.columns)
    return Draft(f"the digit {WORDS[labels[sought]]}", mosaic, Entry(TARGET_CROP, tiles[sought]), wrong)


@dataclass(frozen=True)
class Task:
    """A task: its prompt, how a row is drawn, and whether its training rows have a hard negative."""

    prompt: Prompt
    draw: Callable[[Source, int], Draft]
    has_negatives: bool = False


@dataclass(frozen=True)
class Variant:
    """How an evaluation dataset differs from the training subset of its task: look, layout or wording."""

    task: str
    look: str = ""
    mirrored: bool = False
    columns: int = 2
    reworded: bool = False


# By training subset.
TASKS = {
    "Digits_10": Task(Prompt("Represent the given image for classification", "classification"), draw_digit),
    "Photos": Task(Prompt("Represent the given photograph for naming its subject", "naming the subject"), draw_photo),
    "PairVQA": Task(
        Prompt("Represent the given image with the following question", "the question"), draw_pair_question, True
    ),
    "ColorVQA": Task(
        Prompt("Represent the given image with the following question", "the question"), draw_colour_question, True
    ),
    "Pairs_t2i": Task(
        Prompt("Find an image that matches the given caption", "the caption", image_tag=False), draw_pair_by_caption
    ),
    "Pairs_i2t": Task(Prompt("Find a caption that describes the given image", "captioning"), draw_caption_of_pair),
    "SameDigit": Task(Prompt("Find an image that shows the same as the given image", "likeness"), draw_same_digit),
    "Recolor": Task(Prompt("Find an image like the given one with this change", "the change"), draw_recolour),
    "WebDigits": Task(Prompt("Find an image with text that answers this question", "the answer"), draw_captioned, True),
    "MosaicGround": Task(
        Prompt("Select the portion of the image that isolates the object with this label", "the label"),
        draw_grounding,
        True,
    ),
}

# Evaluation datasets that are not simply the held-out half of a training subset.
VARIANTS = {
    "Digits-Tilted": Variant("Digits_10", look="tilted"),
    "Digits-Inverted": Variant("Digits_10", look="inverted"),
    "Photos-Mirrored": Variant("Photos", mirrored=True),
    "PairVQA-Reworded": Variant("PairVQA", reworded=True),
    "ColorVQA-Noisy": Variant("ColorVQA", look="noisy"),
    "SameDigit-Tilted": Variant("SameDigit", look="tilted"),
    "Recolor-Reworded": Variant("Recolor", reworded=True),
    "MosaicGround-Row": Variant("MosaicGround", columns=4),
}
