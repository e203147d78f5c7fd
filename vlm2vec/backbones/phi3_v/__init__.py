"""Phi-3-vision / Phi-3.5-vision as an embedding backbone: configuration, processor and model."""

from vlm2vec.backbones.phi3_v.configuration import Phi3VConfig
from vlm2vec.backbones.phi3_v.image_processor import Phi3VImageProcessor
from vlm2vec.backbones.phi3_v.modeling import Phi3VModel
from vlm2vec.backbones.phi3_v.processor import Phi3VProcessor, collate, collate_items, item_with_images

__all__ = [
    "Phi3VConfig",
    "Phi3VImageProcessor",
    "Phi3VModel",
    "Phi3VProcessor",
    "collate",
    "collate_items",
    "item_with_images",
]
