"""FLOPs of one item's forward pass through full-size Phi-3.5-V: this project compared with the original.

    python -m benchmarks.flops

They are counted by torch's FlopCounterMode on the meta device, so neither weights nor an accelerator is needed.
Attention is counted in full on both sides. The original runs CLIP on zero crops and through its last layer, and applies
`lm_head` at every position; the embedding depends on none of these.
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VImageProcessor, Phi3VModel
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line

# (name, text tokens, image's width and height or None, num_crops)
ITEMS = [
    ("text of 20 tokens", 20, None, 4),
    ("640 x 480 image, 4 crops", 20, (640, 480), 4),
    ("1024 x 300 image, 4 crops", 20, (1024, 300), 4),
    ("640 x 480 image, 16 crops", 20, (640, 480), 16),
]


def full_size_config() -> Phi3VConfig:
    """Phi-3.5-vision-instruct; eager attention, because the counter does not know the CPU's fused kernel."""
    config = Phi3VConfig(attn_implementation="eager")
    assert (config.hidden_size, config.num_hidden_layers, config.vision_config.hidden_size) == (3072, 32, 1024)
    return config


def ours(model: Phi3VModel, text_tokens: int, layout: tuple[int, int, torch.Tensor] | None) -> int:
    """FLOPs of this code's forward pass; layout = (image tokens, real crops, image sizes)."""
    ids = torch.zeros(1, text_tokens, dtype=torch.int64, device="meta")
    images: dict[str, torch.Tensor] = {}
    if layout is not None:
        image_tokens, crops, sizes = layout
        ids = torch.full((1, text_tokens + image_tokens), -1, device="meta")
        size = model.config.vision_config.image_size
        images = {"pixel_values": torch.zeros(crops, 3, size, size, device="meta"), "image_sizes": sizes}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids, torch.ones_like(ids), **images)
    return int(counter.get_total_flops())


def wasted(model: Phi3VModel, length: int, crops: int, zero_crops: int) -> int:
    """FLOPs that only the original runs: `lm_head`, CLIP on zero crops, CLIP's last layer on all crops."""
    config, tower = model.config, model.model.vision_embed_tokens.img_processor.vision_model
    size = config.vision_config.image_size
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, device="meta")
        lm_head(torch.zeros(1, length, config.hidden_size, device="meta"))
        if crops:
            patches = tower.embeddings(torch.zeros(1, 3, size, size, device="meta"))
            last_layer = tower.encoder.layers[-1]
            last_layer(patches.expand(crops, -1, -1), None)
        if zero_crops:
            tower(torch.zeros(zero_crops, 3, size, size, device="meta"))
    one_patching = 2 * 3 * config.vision_config.patch_size**2 * config.vision_config.hidden_size
    patching = one_patching * (size // config.vision_config.patch_size) ** 2 if crops else 0
    return int(counter.get_total_flops()) - patching  # the embedding above only creates the last layer's input


def parser() -> Parser:
    """The command line."""
    return Parser(
        prog="python -m benchmarks.flops", description=first_line(__doc__), examples=("python -m benchmarks.flops",)
    )


def main() -> None:
    """Prints the table in Markdown."""
    parser().parse_args()
    with torch.device("meta"):
        model = Phi3VModel(full_size_config()).eval()
    print("| item | tokens | this code, TFLOP | original, TFLOP | saved |\n| --- | --- | --- | --- | --- |")
    for what, text_tokens, image, num_crops in ITEMS:
        layout, length, crops = None, text_tokens, 0
        zero_crops = 0  # in a batch without images the original does not run CLIP either
        if image is not None:
            processor = Phi3VImageProcessor(num_crops)
            found = processor.layout(*image)
            layout = (found.num_tokens, found.num_crops, torch.tensor([processor.image_size(*image)]))
            length, crops = text_tokens + found.num_tokens, found.num_crops
            zero_crops = num_crops + 1 - crops
        mine = ours(model, text_tokens, layout)
        original = mine + wasted(model, length, crops, zero_crops)
        print(f"| {what} | {length} | {mine / 1e12:.3f} | {original / 1e12:.3f} | {1 - mine / original:.1%} |")


if __name__ == "__main__":
    sys.exit(run_program(main))
