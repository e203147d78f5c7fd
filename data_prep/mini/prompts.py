"""The miniature's prompts, in MMEB's style: an image tag, an instruction and often a question."""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_TAG = "<|image_1|>"

# Ten ways to ask, as in MMEB's `diverse_instruction` split; some have the tag in mid-sentence.
# {purpose} is "classification", {question} is "" or ": Which digit is on the left?".
_PARAPHRASES_WITH_IMAGE = (
    "{tag}\nEncode this image for {purpose}{question}\n",
    "{tag}\nThe image above serves {purpose}{question}\n",
    "{tag}\nPlease represent the picture, the purpose being {purpose}{question}\n",
    "{tag}\nWhat matters in this image is {purpose}{question}\n",
    "{tag}\nSummarise the given picture for {purpose}{question}\n",
    "Given the image {tag}, represent it for {purpose}{question}\n",
    "Look at {tag} for the sake of {purpose}{question}\n",
    "Use the picture {tag} for {purpose}{question}\n",
    "With {tag} at hand, turn to {purpose}{question}\n",
    "Embed {tag} for {purpose}{question}\n",
)
_PARAPHRASES_WITHOUT_IMAGE = (
    "Encode this text for {purpose}{question}\n",
    "The text below serves {purpose}{question}\n",
    "Please represent the words, the purpose being {purpose}{question}\n",
    "What matters in this text is {purpose}{question}\n",
    "Summarise the given words for {purpose}{question}\n",
    "Given the text, represent it for {purpose}{question}\n",
    "Read this for the sake of {purpose}{question}\n",
    "Use the text for {purpose}{question}\n",
    "With these words at hand, turn to {purpose}{question}\n",
    "Embed the words for {purpose}{question}\n",
)
NUM_PARAPHRASES = len(_PARAPHRASES_WITH_IMAGE)


@dataclass(frozen=True)
class Prompt:
    """A task's query prompt.

    Attributes:
        instruction: The paper-style wording of the `original` split.
        purpose: The noun phrase that the paraphrases are built around.
        image_tag: Whether the prompt begins with an image tag. WebQA's queries have one without having an image.
    """

    instruction: str
    purpose: str
    image_tag: bool = True

    def original(self, question: str) -> str:
        """The `original` split's query text."""
        lead = f"{IMAGE_TAG}\n" if self.image_tag else ""
        return f"{lead}{self.instruction}{_tail(question)}\n"

    def paraphrase(self, question: str, number: int) -> str:
        """The `diverse_instruction` split's query text, in wording 0 to `NUM_PARAPHRASES` - 1."""
        wordings = _PARAPHRASES_WITH_IMAGE if self.image_tag else _PARAPHRASES_WITHOUT_IMAGE
        return wordings[number].format(tag=IMAGE_TAG, purpose=self.purpose, question=_tail(question))


def _tail(question: str) -> str:
    return f": {question}" if question else ""


TARGET_IMAGE = f"{IMAGE_TAG}\nRepresent the given image.\n"
TARGET_CROP = f"{IMAGE_TAG}\nRepresent the given cropped image of the object\n"
TARGET_CAPTIONED = f"{IMAGE_TAG}\nRepresent the given image together with its text: {{caption}}\n"
