"""The processors of the Qwen families, and folders to load them from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.rig import qwen_golden
from tests.rig.qwen_items import FORMATS as OWN_FORMAT
from vlm2vec.backbones.qwen_vl.items.families import Qwen2_5_VLProcessor, Qwen2VLProcessor, Qwen3VLProcessor
from vlm2vec.backbones.qwen_vl.items.formats import FORMATS
from vlm2vec.backbones.qwen_vl.items.processor import QwenVLProcessor

PROCESSORS: dict[str, type[QwenVLProcessor]] = {
    each.model_type: each for each in (Qwen2VLProcessor, Qwen2_5_VLProcessor, Qwen3VLProcessor)
}


def load(family: str, prompt_format: str = "", **limits: int) -> QwenVLProcessor:
    chosen = FORMATS[prompt_format or OWN_FORMAT[family]]
    return PROCESSORS[family].from_pretrained(qwen_golden.model_folder(family), chosen, **limits)


def copied(family: str, folder: Path, **preprocessor: Any) -> Path:
    """A folder that may be changed, with other settings in preprocessor_config.json."""
    shutil.copytree(qwen_golden.model_folder(family), folder)
    file = folder / "preprocessor_config.json"
    content = json.loads(file.read_text()) | preprocessor
    file.write_text(json.dumps({name: value for name, value in content.items() if value != "absent"}))
    return folder
