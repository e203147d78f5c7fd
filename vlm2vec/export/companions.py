"""Small files beside the weights, with which sentence-transformers loads the folder."""

from __future__ import annotations

import json
from pathlib import Path

from vlm2vec.encoder import SETTINGS_FILE

MODULE_FILE = "vlm2vec_module.py"
# Run by sentence-transformers when it is told trust_remote_code=True.
_MODULE_CODE = '''"""Lets sentence-transformers load this folder; the code is in the package vlm2vec-deepspeed."""

try:
    from vlm2vec.sentence_transformer import VLM2VecModule
except ImportError as error:
    raise ImportError(
        "this model's code is in the package vlm2vec-deepspeed, to be installed beside sentence-transformers 6; "
        f"it cannot be imported here ({error})"
    ) from error

__all__ = ["VLM2VecModule"]
'''


def write_companions(folder: Path, max_len: int | None) -> None:
    """Writes modules.json, what it names, and the settings that go with it.

    Args:
        folder: The exported folder.
        max_len: The run's; texts are cut to it.
    """
    module = {"idx": 0, "name": "0", "path": "", "type": f"{Path(MODULE_FILE).stem}.VLM2VecModule"}
    library = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}}
    _write_json(folder / "modules.json", [module])
    _write_json(folder / "config_sentence_transformers.json", library)
    _write_json(folder / SETTINGS_FILE, {"max_len": max_len})
    (folder / MODULE_FILE).write_text(_MODULE_CODE, encoding="utf-8")


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
