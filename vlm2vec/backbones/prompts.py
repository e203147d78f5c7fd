"""`PromptFormat`: how an item's text, its images and an instruction become the text that a model reads.

A format belongs to a checkpoint: a model gives the vectors that it was trained for only with the prompts that it was
trained on. Texts in shards and data sets are neutral, with tags `<|image_1|>`, ... where images belong.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import StrictModel, shorten
from vlm2vec.item_rules import IMAGE_ONLY_TEXT, IMAGE_TAG, image_tags, refuse_empty

CONTENT, INSTRUCTION = "{content}", "{instruction}"
# Where an item's own text belongs in an instruction that is a whole text.
TEXT = "{text}"
# Tokens to which texts are truncated where nothing says otherwise: the original's.
DEFAULT_MAX_LEN = 256

_Text = Annotated[str, Field(max_length=1 << 14)]


@dataclass(frozen=True)
class Prompt:
    """A rendered item, cut where the template ends and the item's own content begins.

    Attributes:
        before, after: What the template adds.
        content: The item's text, with a tag `<|image_k|>` for image k.
    """

    before: str
    content: str
    after: str

    def __str__(self) -> str:
        return f"{self.before}{self.content}{self.after}"

    def truncated(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], max_len: int | None) -> list[int]:
        """Token ids of the whole prompt, without the last tokens of its content if there are more than `max_len`.

        Args:
            ids: Of `str(self)`.
            offsets: Where in it each token begins and ends, in characters.
            max_len: Most ids; what the template adds stays even if it alone is longer. None: all.
        """
        if max_len is None or len(ids) <= max_len:
            return list(ids)
        start, end = len(self.before), len(self.before) + len(self.content)
        inside = [index for index, (begin, stop) in enumerate(offsets) if start <= begin and begin < stop <= end]
        dropped = set(inside[max(0, len(inside) - (len(ids) - max_len)) :])
        return [each for index, each in enumerate(ids) if index not in dropped]


class PromptFormat(StrictModel):
    """How a model's prompts are made. The defaults are the raw format: the text as it stands.

    It is a part of a model folder's `vlm2vec_config.json`.

    Attributes:
        name: Of a family's built-in format, or any other for one's own. It decides nothing.
        image: What stands for an image in the rendered text, with the family's image token once inside it; "": the
            family has no such text.
        images: "in_place": where the text's tags are, which are demanded. "first": before the text, in their order;
            tags, each with one blank or newline directly behind it, are taken out of the text, which needs none.
        template: The whole prompt, with `{content}` once (images and text) and `{instruction}` at most once.
        instruction: What stands at `{instruction}` where an item has none of its own; None: the template has no place.
        instruction_full_stop: Strip an instruction, and end it with "." unless it ends with punctuation (Unicode P*).
        image_alone: Text of an item that is one image without text.
        nothing: Content of an item with neither text nor image; None: such an item is an error.
        positions: Of image tokens: "sequence", one after another like text, or "grid", by row and column (M-RoPE).
        transparency: Of an image: alpha is "dropped", or it is blended over "white".
        resize: Which of a family's rules for image sizes; "": its only one.
        pooled: The token whose state is the vector.
    """

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100)] = "raw"
    image: _Text = ""
    images: Literal["in_place", "first"] = "in_place"
    template: _Text = CONTENT
    instruction: _Text | None = None
    instruction_full_stop: bool = False
    image_alone: _Text = IMAGE_ONLY_TEXT
    nothing: _Text | None = None
    positions: Literal["sequence", "grid"] = "sequence"
    transparency: Literal["dropped", "white"] = "dropped"
    resize: Annotated[str, Field(max_length=100)] = ""
    pooled: Literal["last"] = "last"

    @field_validator("template")
    @classmethod
    def _has_one_place_for_content(cls, template: str) -> str:
        if template.count(CONTENT) != 1 or template.count(INSTRUCTION) > 1:
            raise ValueError(
                f"template is {shorten(template)}; it needs {CONTENT} exactly once, and {INSTRUCTION} at most once"
            )
        return template

    @field_validator("template", "image", "instruction", "nothing")
    @classmethod
    def _has_no_tag(cls, text: str | None) -> str | None:
        if text is not None and IMAGE_TAG.search(text):
            raise ValueError(f"{shorten(text)} holds an image tag; tags belong to the items' texts and to image_alone")
        return text

    @model_validator(mode="after")
    def _fits_together(self) -> PromptFormat:
        if self.takes_instruction != (self.instruction is not None):
            raise ValueError(
                f"template is {shorten(self.template)} and instruction {shorten(self.instruction)}; a template with "
                f"{INSTRUCTION} needs a default instruction, and one without it has none"
            )
        if self.nothing == "":
            raise ValueError("nothing is empty; give the text of an item without content, or null to refuse such items")
        try:
            self.render("", 1)
        except InputError as error:
            raise ValueError(f"image_alone: {error}") from error
        return self

    @property
    def takes_instruction(self) -> bool:
        """Whether the template has a place for an instruction."""
        return INSTRUCTION in self.template

    @property
    def num_added_characters(self) -> int:
        """Characters of the template with its default instruction, for estimates."""
        return (
            len(self.template) - len(CONTENT) + len(self.instruction or "") - len(INSTRUCTION) * self.takes_instruction
        )

    def is_same(self, other: PromptFormat, whatever_instruction: bool = False) -> bool:
        """Whether two formats make the same prompts, whatever they are called.

        Args:
            other: To compare with.
            whatever_instruction: Their default instructions may differ.
        """
        ignored = ("name", "instruction") if whatever_instruction else ("name",)
        return self.model_copy(update={each: getattr(other, each) for each in ignored}) == other

    def render(self, text: str, num_images: int, instruction: str | None = None) -> str:
        """An item's prompt: `prompt` in one piece."""
        return str(self.prompt(text, num_images, instruction))

    def prompt(self, text: str, num_images: int, instruction: str | None = None) -> Prompt:
        """An item's prompt, still with a tag `<|image_k|>` for image k.

        Args:
            text: The item's own, "" if it has none. Beside no image, "in_place" takes its tags as ordinary text.
            num_images: Its images.
            instruction: Its own; None or "": the format's.

        Raises:
            InputError: An instruction without a place for one, or with an image tag; tags that do not fit the images.
        """
        content = self._content(text, num_images)
        before, after = self.template.split(CONTENT)
        instruction = self._instruction(instruction)
        return Prompt(before.replace(INSTRUCTION, instruction), content, after.replace(INSTRUCTION, instruction))

    def instructed(self, text: str, num_images: int, instruction: str) -> tuple[str, str | None]:
        r"""An item's text under an instruction, for texts that do not hold theirs, such as a corpus's.

        A format with a place for an instruction puts it there. In others it is part of the text, behind the images and
        before the item's own words, as MMEB-V2's own code writes it: `<|image_1|> instruction text`. An instruction
        with `{text}` or an image tag in it is a whole text instead, for models that were trained on such texts:
        `"<|image_1|>\nRepresent the given image: {text}\n"`.

        Args:
            text: The item's own without tags of images, "" if it has none.
            num_images: Its images.
            instruction: "" for none.

        Returns:
            The text with tags of images, and what `prompt` takes as the item's instruction.
        """
        if not instruction and num_images == 1 and not text:
            return "", None  # an image alone has its own prompt
        tags = [f"<|image_{number}|>" for number in range(1, num_images + 1)]
        if TEXT in instruction or IMAGE_TAG.search(instruction):
            has_tags = bool(IMAGE_TAG.search(instruction))
            whole = instruction if num_images else _without_tags(instruction)
            return " ".join([*(() if has_tags else tags), whole.replace(TEXT, text)]), None
        if self.takes_instruction:
            return " ".join(part for part in (*tags, text) if part), instruction or None
        return " ".join(part for part in (*tags, instruction, text) if part), None

    def refuse_empty(self, text: str, num_images: int) -> None:
        """Refuses an item with neither text nor image, unless the format has a text for it (`nothing`).

        Raises:
            InputError: It says nothing.
        """
        if self.nothing is None:
            refuse_empty(text, num_images)

    def _content(self, text: str, num_images: int) -> str:
        if num_images == 1 and not text:
            text = self.image_alone
        if self.images == "first":
            if num_images and IMAGE_TAG.search(text):
                image_tags(text, num_images)
            text = _without_tags(text)
            text = "".join(f"<|image_{number}|>" for number in range(1, num_images + 1)) + text
        elif num_images:
            image_tags(text, num_images)
        return text or self.nothing or ""

    def _instruction(self, own: str | None) -> str:
        if own and not self.takes_instruction:
            raise InputError(
                f"prompt format {self.name!r} has no place for an instruction ({shorten(own)}): put it into the text, "
                f"or use a format whose template has {INSTRUCTION}"
            )
        if own and IMAGE_TAG.search(own):
            raise InputError(f"the instruction {shorten(own)} holds an image tag, which belongs to the item's text")
        instruction = own or self.instruction or ""
        if self.instruction_full_stop:
            instruction = instruction.strip()
            if instruction and not unicodedata.category(instruction[-1]).startswith("P"):
                instruction += "."
        return instruction


def named_format(formats: Mapping[str, PromptFormat], name: str | None, folder: Path | None = None) -> PromptFormat:
    """A built-in format by its name.

    Args:
        formats: Of the family.
        name: None: nothing tells which one a folder's model was trained with.
        folder: That folder.

    Raises:
        InputError: There is none of this name, or no name.
    """
    if name is None:
        raise InputError(
            f"{folder}: nothing tells which prompts this model was trained with: there is no vlm2vec_config.json, and "
            "it is no published model that is known by its files or name; pass prompt_format (--prompt_format), one "
            f"of {', '.join(formats)}"
        )
    if name not in formats:
        raise InputError(f"{shorten(name)} is not a known format; this model's family has {', '.join(formats)}")
    return formats[name]


def _without_tags(text: str) -> str:
    """The text without image tags and without one blank or newline directly behind each."""
    first, *others = IMAGE_TAG.split(text)[::2]
    return first + "".join(each[1:] if each[:1] in (" ", "\n") else each for each in others)
