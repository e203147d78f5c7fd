"""Phi-3-vision and Phi-3.5-vision as a family of the registry."""

from __future__ import annotations

from pathlib import Path

from vlm2vec.backbones.interface import Family
from vlm2vec.backbones.phi3_v.configuration import Phi3VConfig
from vlm2vec.backbones.phi3_v.modeling import Phi3VModel
from vlm2vec.backbones.phi3_v.processor import Phi3VProcessor, PreprocessorSettings


def _stored_num_crops(folder: Path) -> int | None:
    return PreprocessorSettings.read(folder).num_crops


PHI3_V = Family(Phi3VConfig.model_type, Phi3VModel, Phi3VProcessor, _stored_num_crops)
