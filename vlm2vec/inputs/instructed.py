"""Adds an instruction to an item whose text does not contain it, such as the queries and documents of a search."""

from __future__ import annotations

from dataclasses import replace

from vlm2vec.backbones.prompts import TEXT, PromptFormat
from vlm2vec.errors import InputError
from vlm2vec.inputs.items import EncodeItem, errors_of
from vlm2vec.item_rules import IMAGE_TAG, shorten


def instructed(item: EncodeItem, prompt_format: PromptFormat) -> EncodeItem:
    """Puts an item's instruction where the prompt format has it (`PromptFormat.instructed`).

    Args:
        item: An item without image tags in its text, with its instruction; None or "": no instruction. If the
            instruction becomes part of the text, spaces at its end are dropped, because one space is added there.
        prompt_format: Prompt format of the model.

    Raises:
        InputError: The text of an item with images contains image tags; the message names the item.
    """
    instruction = item.instruction or ""
    is_part = not prompt_format.takes_instruction and TEXT not in instruction and not IMAGE_TAG.search(instruction)
    with errors_of(item.name):
        if item.images and IMAGE_TAG.search(item.text):
            raise InputError(
                f"the text {shorten(item.text)!r} has image tags; remove them: they are added before the instruction"
            )
        text, own = prompt_format.instructed(
            item.text, len(item.images), instruction.rstrip(" ") if is_part else instruction
        )
    return replace(item, text=text, instruction=own)
