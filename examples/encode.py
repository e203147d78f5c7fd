"""Encodes an image and two captions and prints their similarities in both directions.

    python examples/encode.py --model_name DIR [--image IMAGE] [--captions "A cat and a dog" "A cat and a tiger"]

DIR is a checkpoint folder, an adapter folder, or a Hugging Face repository such as TIGER-Lab/VLM2Vec-Full. Without
--image a small image of a coloured digit is drawn.
"""

from __future__ import annotations

import sys
from dataclasses import fields

import torch
from PIL import Image, ImageDraw

from vlm2vec import VLM2Vec
from vlm2vec.backbones.image_limits import ImageLimitFlags
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser

IMAGE_QUERY = "<|image_1|> Represent the given image with the following question: What is in the image"
TEXT_QUERY = "Find me an everyday image that matches the given caption: {caption}."
IMAGE_TARGET = "<|image_1|> Represent the given image."


def drawn_image() -> Image.Image:
    """A red "7" on a dark ground, 32 x 32 pixels, as in the miniature."""
    image = Image.new("RGB", (32, 32), (16, 16, 16))
    ImageDraw.Draw(image).line([(8, 7), (23, 7), (13, 25)], fill=(235, 45, 45), width=3)
    return image


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python examples/encode.py",
        description="Prints the similarities of an image and captions.",
        examples=("python examples/encode.py --model_name demo/trained --captions seven eight",),
    )
    made.add_argument(
        "--model_name", required=True, metavar="DIR|NAME", help="Model folder, adapter folder or Hugging Face name."
    )
    made.add_argument("--image", metavar="FILE", help="Image file. If not given: a drawn digit.")
    made.add_argument(
        "--prompt_format", metavar="NAME", help="Prompt format of the model's family. If not given: as in training."
    )
    made.add_argument(
        "--captions", nargs="+", default=["A cat and a dog", "A cat and a tiger"], help="Captions to compare it with."
    )
    for limit in fields(ImageLimitFlags):
        made.add_argument(f"--{limit.name}", type=int, help=limit.metadata["help"])
    return made


def main() -> None:
    """Parses the command line, encodes, prints."""
    arguments = parser().parse_args()
    limits = ImageLimitFlags(**{limit.name: getattr(arguments, limit.name) for limit in fields(ImageLimitFlags)})
    limits.refuse_impossible_limits()

    on_gpu = torch.cuda.is_available()
    encoder = VLM2Vec.from_pretrained(
        arguments.model_name,
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        device="cuda" if on_gpu else "cpu",
        prompt_format=arguments.prompt_format,
        num_crops=limits.num_crops,
        min_pixels=limits.min_pixels,
        max_pixels=limits.max_pixels,
    )
    image = arguments.image or drawn_image()

    print("image -> text")
    query = encoder.encode(texts=[IMAGE_QUERY], images=[image])
    for caption, score in zip(
        arguments.captions, encoder.similarity(query, encoder.encode(texts=arguments.captions))[0], strict=True
    ):
        print(f"  {score:.4f}  {caption}")

    print("text -> image")
    target = encoder.encode(texts=[IMAGE_TARGET], images=[image])
    queries = encoder.encode(texts=[TEXT_QUERY.format(caption=caption) for caption in arguments.captions])
    for caption, score in zip(arguments.captions, encoder.similarity(queries, target)[:, 0], strict=True):
        print(f"  {score:.4f}  {caption}")


if __name__ == "__main__":
    sys.exit(run_program(main))
