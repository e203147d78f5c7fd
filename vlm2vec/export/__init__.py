"""From a checkpoint of ZeRO ranks to a Hugging Face folder, without starting ranks and without holding the model."""

from vlm2vec.export.folder import export

__all__ = ["export"]
