"""`PromptFormat`: how an item's text, images and instruction become the prompt that a model reads.

A format belongs to a checkpoint, because a model gives good vectors only for prompts like those it was trained on.
Texts in shards and datasets are neutral, with tags `<|image_1|>`, ... for images.
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
# Place of the item's text in an instruction that is a whole text.
TEXT = "{text}"
# Default number of tokens to which texts are truncated, as in the original.
DEFAULT_MAX_LEN = 256

_Text = Annotated[str, Field(max_length=1 << 14)]


@dataclass(frozen=True)
class Prompt:
    """A rendered item, split into the parts of the template and the item's content.

    Attributes:
        before, after: Parts that the template adds.
        content: The item's text, with a tag `<|image_k|>` for image k.
    """

    before: str
    content: str
    after: str

    def __str__(self) -> str:
        return f"{self.before}{self.content}{self.after}"

    def truncated(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], max_len: int | None) -> list[int]:
        """Token ids of the whole prompt, truncated to `max_len` by dropping the last tokens of its content.

        Args:
            ids: Token ids of `str(self)`.
            offsets: Start and end of each token in it, in characters.
            max_len: Most ids; parts of the template are kept even if they alone are longer. None: no limit.
        """
        if max_len is None or len(ids) <= max_len:
            return list(ids)
        start, end = len(self.before), len(self.before) + len(self.content)
        inside = [index for index, (begin, stop) in enumerate(offsets) if start <= begin and begin < stop <= end]
        dropped = set(inside[max(0, len(inside) - (len(ids) - max_len)) :])
        return [each for index, each in enumerate(ids) if index not in dropped]


class PromptFormat(StrictModel):
    """How a model's prompts are made. The defaults are the raw format: the text unchanged.

    It is stored in a model folder's `vlm2vec_config.json`.

    Attributes:
        name: Name of a built-in format, or any name for a custom one. It has no effect.
        image: Text that replaces an image's tag in the prompt and contains the family's image token once; "" if the
            family needs no such text.
        images: "in_place": images are at their tags in the text, which must have them. "first": images precede the
            text; it needs no tags, and tags in it, each with one blank or newline after it, are removed.
        template: The whole prompt, with `{content}` once (images and text) and `{instruction}` at most once.
        instruction: Default for `{instruction}`; None if the template has no place for one.
        instruction_full_stop: Strip an instruction, and end it with "." unless it ends with punctuation (Unicode P*).
        image_alone: Text of an item that is one image without text.
        nothing: Content of an item with neither text nor image; None: such an item is an error.
        positions: Positions of image tokens: "sequence", like text, or "grid", by row and column (M-RoPE).
        transparency: Alpha of images is "dropped", or blended over "white".
        resize: Name of one of the family's rules for image sizes; "": its only rule.
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
        """Number of characters of the template with its default instruction, for estimates."""
        return (
            len(self.template) - len(CONTENT) + len(self.instruction or "") - len(INSTRUCTION) * self.takes_instruction
        )

    def is_same(self, other: PromptFormat, whatever_instruction: bool = False) -> bool:
        """Whether two formats make the same prompts, whatever their names.

        Args:
            other: The format to compare with.
            whatever_instruction: Ignore differences between default instructions.
        """
        ignored = ("name", "instruction") if whatever_instruction else ("name",)
        return self.model_copy(update={each: getattr(other, each) for each in ignored}) == other

    def render(self, text: str, num_images: int, instruction: str | None = None) -> str:
        """An item's prompt as one text, see `prompt`."""
        return str(self.prompt(text, num_images, instruction))

    def prompt(self, text: str, num_images: int, instruction: str | None = None) -> Prompt:
        """An item's prompt, which still has a tag `<|image_k|>` for image k.

        Args:
            text: Text of the item, "" if it has none. Without images, "in_place" treats tags as ordinary text.
            num_images: Number of its images.
            instruction: Instruction of the item; None or "": the format's.

        Raises:
            InputError: The format has no place for an instruction, the instruction has an image tag, or tags and images
                do not match.
        """
        content = self._content(text, num_images)
        before, after = self.template.split(CONTENT)
        instruction = self._instruction(instruction)
        return Prompt(before.replace(INSTRUCTION, instruction), content, after.replace(INSTRUCTION, instruction))

    def instructed(self, text: str, num_images: int, instruction: str) -> tuple[str, str | None]:
        r"""Adds an instruction to an item whose text does not contain it, such as one of a corpus.

        A format that has a place for an instruction puts it there. In other formats it becomes part of the text, after
        the images and before the item's own words, as MMEB-V2's code writes it: `<|image_1|> instruction text`. An
        instruction that contains `{text}` or an image tag is the whole text, for models trained on such texts:
        `"<|image_1|>\nRepresent the given image: {text}\n"`.

        Args:
            text: Text of the item without image tags, "" if it has none.
            num_images: Number of its images.
            instruction: The instruction; "" for none.

        Returns:
            The text with image tags, and the instruction to pass to `prompt`.
        """
        if not instruction and num_images == 1 and not text:
            return "", None  # an image alone has a special prompt
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
            InputError: The item is empty.
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
    """Looks up a built-in format by its name.

    Args:
        formats: Formats of the family.
        name: Name of the format; None if the format of a folder's model is unknown.
        folder: That folder.

    Raises:
        InputError: There is no format of this name, or the name is None.
    """
    if name is None:
        raise InputError(
            f"{folder}: nothing tells which prompts this model was trained with: there is no vlm2vec_config.json, and "
            "it is no published model that is known by its files or name; pass prompt_format (--prompt_format), one "
            f"of {', '.join(formats)}"
        )
    if name not in formats:
        raise InputError(f"{shorten(name)} is not a known format; this model's family supports {', '.join(formats)}")
    return formats[name]


def _without_tags(text: str) -> str:
    """Removes image tags, each with one blank or newline directly after it."""
    first, *others = IMAGE_TAG.split(text)[::2]
    return first + "".join(each[1:] if each[:1] in (" ", "\n") else each for each in others)
