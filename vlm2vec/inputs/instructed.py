"""Items under an instruction, for texts that do not hold theirs: the queries and documents of a search."""

from __future__ import annotations

from dataclasses import replace

from vlm2vec.backbones.prompts import TEXT, PromptFormat
from vlm2vec.errors import InputError
from vlm2vec.inputs.items import EncodeItem, errors_of
from vlm2vec.item_rules import IMAGE_TAG, shorten


def instructed(item: EncodeItem, prompt_format: PromptFormat) -> EncodeItem:
    """The item with its instruction where the prompt format has it (`PromptFormat.instructed`).

    Args:
        item: Its text without image tags, and its instruction; None or "": none. Blanks at the end of an instruction
            that becomes part of the text are dropped, as one blank is put there.
        prompt_format: Of the model.

    Raises:
        InputError: Tags in the text of an item with images; the message names the item.
    """
    instruction = item.instruction or ""
    is_part = not prompt_format.takes_instruction and TEXT not in instruction and not IMAGE_TAG.search(instruction)
    with errors_of(item.name):
        if item.images and IMAGE_TAG.search(item.text):
            raise InputError(
                f"the text {shorten(item.text)!r} has image tags; leave them out, they are added before the instruction"
            )
        text, own = prompt_format.instructed(
            item.text, len(item.images), instruction.rstrip(" ") if is_part else instruction
        )
    return replace(item, text=text, instruction=own)
