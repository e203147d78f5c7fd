"""The families of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, for the registry."""

from __future__ import annotations

from pathlib import Path

from vlm2vec.backbones.interface import Family
from vlm2vec.backbones.qwen_vl.items.families import Qwen2_5_VLProcessor, Qwen2VLProcessor, Qwen3VLProcessor
from vlm2vec.backbones.qwen_vl.items.formats import FORMATS, MAX_LENS, recognised_format
from vlm2vec.backbones.qwen_vl.items.processor import LIMITS, QwenVLProcessor
from vlm2vec.backbones.qwen_vl.modeling import Qwen2_5_VLModel, Qwen2VLModel, Qwen3VLModel, QwenVLModel

_SHIPPED = Path(__file__).parent / "published"


def _family(model: type[QwenVLModel], processor: type[QwenVLProcessor], published: dict[str, str]) -> Family:
    """Makes a family; `published` maps names on the hub to shipped folders."""
    return Family(
        model_type=processor.model_type,
        backbone=model,
        processor=processor,
        prompt_formats=FORMATS,
        recognise_format=recognised_format,
        image_limits=LIMITS,
        max_lens=MAX_LENS,
        stored_limits=processor.stored_limits,
        vision_unit_name="patches",
        published_configs={name: _SHIPPED / folder for name, folder in published.items()},
    )


# Embedding models have the configuration of the Instruct model that they were trained from; adapters have their base's.
QWEN2_VL = _family(
    Qwen2VLModel,
    Qwen2VLProcessor,
    {
        "Qwen/Qwen2-VL-2B-Instruct": "Qwen2-VL-2B-Instruct",
        "Qwen/Qwen2-VL-7B-Instruct": "Qwen2-VL-7B-Instruct",
        "TIGER-Lab/VLM2Vec-Qwen2VL-2B": "Qwen2-VL-2B-Instruct",
        "TIGER-Lab/VLM2Vec-Qwen2VL-7B": "Qwen2-VL-7B-Instruct",
        "VLM2Vec/VLM2Vec-V2.0": "Qwen2-VL-2B-Instruct",
        "raghavlite/B3_Qwen2_2B": "Qwen2-VL-2B-Instruct",
        "raghavlite/B3_Qwen2_7B": "Qwen2-VL-7B-Instruct",
        "Alibaba-NLP/gme-Qwen2-VL-2B-Instruct": "Qwen2-VL-2B-Instruct",
        "Alibaba-NLP/gme-Qwen2-VL-7B-Instruct": "Qwen2-VL-7B-Instruct",
    },
)
QWEN2_5_VL = _family(Qwen2_5_VLModel, Qwen2_5_VLProcessor, {"Qwen/Qwen2.5-VL-3B-Instruct": "Qwen2.5-VL-3B-Instruct"})
QWEN3_VL = _family(
    Qwen3VLModel,
    Qwen3VLProcessor,
    {
        "Qwen/Qwen3-VL-2B-Instruct": "Qwen3-VL-2B-Instruct",
        "Qwen/Qwen3-VL-8B-Instruct": "Qwen3-VL-8B-Instruct",
        "Qwen/Qwen3-VL-Embedding-2B": "Qwen3-VL-2B-Instruct",
        "Qwen/Qwen3-VL-Embedding-8B": "Qwen3-VL-8B-Instruct",
    },
)
