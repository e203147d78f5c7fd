"""VLM2Vec training on DeepSpeed: exact cached contrastive steps under ZeRO-1/2/3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm2vec.encoder import VLM2Vec

__version__ = "0.1.0"
__all__ = ["VLM2Vec", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazily, so that data programs, which need only the light modules, do not wait for transformers and peft.
    if name == "VLM2Vec":
        from vlm2vec.encoder import VLM2Vec

        return VLM2Vec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
