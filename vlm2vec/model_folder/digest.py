"""A hash of all files of a model that decide its vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

# What decides a model's vectors: weights, configuration, processor, tokenizer. A model card does not.
_MODEL_SUFFIXES = (".safetensors", ".bin", ".json")
_READ_BYTES = 1 << 20


def fingerprint(folders: Sequence[Path]) -> str:
    """Hash of every file that decides a model's vectors, as 16 hexadecimal digits.

    Recorded with the scores, so that a table tells checkpoints of the same name apart, and part of the name under which
    embeddings are kept, so that those of another checkpoint are never taken for this one's.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in folder.iterdir() if path.suffix in _MODEL_SUFFIXES):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while piece := file.read(_READ_BYTES):
                    digest.update(piece)
    return digest.hexdigest()[:16]
