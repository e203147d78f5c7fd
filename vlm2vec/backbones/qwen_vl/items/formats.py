"""Prompt formats of published Qwen-VL embedding models, and how to recognise the format of a published folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.formats.json_files import read_json

# Image token in texts; there is one per image, which is repeated after tokenization.
IMAGE_TOKEN = "<|image_pad|>"

_CHAT_IMAGE = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"
_CHAT = "<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
_ASSISTANT = "You are a helpful assistant."  # from Qwen2-VL's template

_VLM2VEC = PromptFormat(name="vlm2vec", image=IMAGE_TOKEN, resize="vlm2vec")
_CHAT_FORMAT = PromptFormat(
    name="chat",
    image=_CHAT_IMAGE,
    template=_CHAT,
    instruction=_ASSISTANT,
    image_alone="<|image_1|>",
    positions="grid",
    transparency="white",
    resize="transformers",
)

FORMATS: Mapping[str, PromptFormat] = {
    each.name: each
    for each in (
        # VLM2Vec's branch main (V2, B3): texts unchanged, positions as if images were text.
        _VLM2VEC,
        # VLM2Vec's branch v1: VLM2Vec-Qwen2VL-2B and -7B, published with --image_resolution high.
        _VLM2VEC.model_copy(update={"name": "vlm2vec_v1", "resize": "vlm2vec_v1_high"}),
        # For new training from an Instruct model, with its chat template.
        _CHAT_FORMAT,
        # https://github.com/QwenLM/Qwen3-VL-Embedding
        _CHAT_FORMAT.model_copy(
            update={
                "name": "qwen3_vl_embedding",
                "images": "first",
                "instruction": "Represent the user's input.",
                "instruction_full_stop": True,
                "nothing": "NULL",
                "resize": "qwen_vl_utils",
            }
        ),
        # https://huggingface.co/Alibaba-NLP/gme-Qwen2-VL-2B-Instruct
        _CHAT_FORMAT.model_copy(
            update={
                "name": "gme",
                "images": "first",
                "template": f"{_CHAT}<|endoftext|>",
                "positions": "sequence",
                "transparency": "dropped",
                "resize": "gme",
            }
        ),
    )
}

# Fewest and most tokens of an image in the code of each format. The processor files of published folders differ,
# because they are those of the Instruct models.
_TOKEN_LIMITS = {
    "vlm2vec": (4, 1280),
    "vlm2vec_v1": (4, 16384),
    "chat": (4, 1280),
    "qwen3_vl_embedding": (4, 1800),
    "gme": (256, 1280),
}

# Tokens to which texts are truncated. VLM2Vec's branch main sets no limit; v1 was published with --max_len 4096. New
# training uses the limit of Qwen3-VL-Embedding, whose template it shares.
MAX_LENS: Mapping[str, int | None] = {
    "vlm2vec": None,
    "vlm2vec_v1": 4096,
    "chat": 8192,
    "qwen3_vl_embedding": 8192,
    "gme": 1800,
}

# Prefixes of VLM2Vec's modules, which its adapters record.
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_MAKERS = (("src.model.vlm_backbone.", "vlm2vec"), ("src.vlm_backbone.", "vlm2vec_v1"))
# Names of published folders, which the hub's cache contains too (models--Qwen--Qwen2-VL-2B-Instruct).
_FOLDER_NAMES = (
    (r"Qwen(2|2\.5|3)-VL-\d+B(-A\d+B)?-Instruct", "chat"),
    (r"Qwen3-VL-Embedding-\d+B", "qwen3_vl_embedding"),
    (r"gme-Qwen2-VL-\d+B-Instruct", "gme"),
    (r"VLM2Vec-V2(\.\d+)?|B3_Qwen2_\d+B", "vlm2vec"),
    (r"VLM2Vec-Qwen2VL-\d+B", "vlm2vec_v1"),
)
# Code files that are published with only one model.
_FILES = (("scripts/qwen3_vl_embedding.py", "qwen3_vl_embedding"), ("modeling_gme_qwen2vl.py", "gme"))


def format_limits(prompt_format: PromptFormat, factor: int) -> dict[str, int]:
    """Image limits in the code of a built-in format; empty for other formats.

    Args:
        prompt_format: The format; its name does not matter.
        factor: Side of a token in pixels.
    """
    for name, (least, most) in _TOKEN_LIMITS.items():
        if FORMATS[name].is_same(prompt_format):
            return {"min_pixels": least * factor**2, "max_pixels": most * factor**2}
    return {}


def recognised_format(folder: Path) -> str | None:
    """The name of the format that a folder without vlm2vec_config.json was trained with; None if it is unknown.

    Adapters record the code that made them. Whole models have the Instruct models' files; they are recognised by code
    that is published with them, or by the name of the folder or its repository.

    Raises:
        InputError: A file is damaged.
    """
    found = []
    if (folder / _ADAPTER_CONFIG).is_file():
        made = read_json(folder / _ADAPTER_CONFIG).get("auto_mapping")
        maker = str(made.get("parent_library")) if isinstance(made, dict) else ""
        found += [name for path, name in _ADAPTER_MAKERS if maker.startswith(path)]
    found += [name for file, name in _FILES if (folder / file).is_file()]
    path = folder.absolute()
    names = [path.name, *(part.rpartition("--")[2] for part in path.parts if part.startswith("models--"))]
    found += [name for pattern, name in _FOLDER_NAMES if any(re.fullmatch(pattern, each) for each in names)]
    return found[0] if found else None
