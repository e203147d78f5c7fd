"""Small files beside the weights, with which sentence-transformers loads the folder."""

from __future__ import annotations

from pathlib import Path

from vlm2vec.formats.json_files import write_json

MODULE_FILE = "vlm2vec_module.py"
# Run by sentence-transformers if trust_remote_code=True.
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


def write_companions(folder: Path) -> None:
    """Writes modules.json and what it names.

    Args:
        folder: The exported folder.
    """
    module = {"idx": 0, "name": "0", "path": "", "type": f"{Path(MODULE_FILE).stem}.VLM2VecModule"}
    library = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}}
    write_json(folder / "modules.json", [module])
    write_json(folder / "config_sentence_transformers.json", library)
    (folder / MODULE_FILE).write_text(_MODULE_CODE, encoding="utf-8")
