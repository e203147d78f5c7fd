"""Hash of all files of a model that decide its vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

# Files of weights, configuration, processor and tokenizer. A model card does not decide vectors.
_MODEL_SUFFIXES = (".safetensors", ".bin", ".json")
_READ_BYTES = 1 << 20


def fingerprint(folders: Sequence[Path]) -> str:
    """Hash of every file that decides a model's vectors, as 16 hexadecimal digits.

    It is recorded with scores, so that tables distinguish checkpoints of the same name, and is part of the name of
    stored embeddings, so that those of a different checkpoint are never used for this one.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in folder.iterdir() if path.suffix in _MODEL_SUFFIXES):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while piece := file.read(_READ_BYTES):
                    digest.update(piece)
    return digest.hexdigest()[:16]
