"""transformers' own Qwen models, image processors and tokenizers, used as on a published folder."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel

# With output head.
NATIVE: dict[str, type[PreTrainedModel]] = {
    "qwen2_vl": transformers.Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
}
_IMAGE = "<|image_pad|>"


def native_embedding(model: PreTrainedModel, folder: Path, prompt: str, images: list[Image.Image]) -> torch.Tensor:
    """Unit vector (hidden,) of the last token.

    Args:
        model: One of NATIVE; its own code makes positions, windows and the like.
        folder: With the files of tokenizer and image processor.
        prompt: With one `<|image_pad|>` an image.
        images: In RGB.
    """
    call: dict[str, torch.Tensor] = {}
    if images:
        made = AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")
        call = {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
        first, *rest = prompt.split(_IMAGE)
        tokens = (made["image_grid_thw"].prod(1) // 4).tolist()
        prompt = first + "".join(_IMAGE * count + text for count, text in zip(tokens, rest, strict=True))
    ids = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt")["input_ids"]
    if images:
        call["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, **call).last_hidden_state
    return torch.nn.functional.normalize(hidden[0, -1].float(), dim=0)
