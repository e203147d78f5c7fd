"""The family of Phi-3-vision and Phi-3.5-vision, for the registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlm2vec.backbones.interface import Family
from vlm2vec.backbones.phi3_v.configuration import Phi3VConfig
from vlm2vec.backbones.phi3_v.modeling import Phi3VModel
from vlm2vec.backbones.phi3_v.processor import LIMITS, RAW, Phi3VProcessor, PreprocessorSettings


def _stored_limits(folder: Path) -> Mapping[str, int]:
    return PreprocessorSettings.read(folder).limits


_PHI_3_5 = Path(__file__).parent / "published" / "Phi-3.5-vision-instruct"

PHI3_V = Family(
    model_type=Phi3VConfig.model_type,
    backbone=Phi3VModel,
    processor=Phi3VProcessor,
    prompt_formats={RAW.name: RAW},
    recognise_format=lambda _: RAW.name,
    image_limits=LIMITS,
    stored_limits=_stored_limits,
    vision_unit_name="crops",
    # VLM2Vec-Full is Phi-3.5-V with other weights.
    published_configs={"microsoft/Phi-3.5-vision-instruct": _PHI_3_5, "TIGER-Lab/VLM2Vec-Full": _PHI_3_5},
)
