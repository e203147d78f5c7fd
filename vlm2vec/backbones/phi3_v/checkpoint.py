"""Tensor names of Phi-3-V checkpoints, and the reader of config.json, which is checked against the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlm2vec.backbones.checkpoint import CONFIG_FILE, Shape, TensorNames
from vlm2vec.backbones.phi3_v.config_file import read_config
from vlm2vec.backbones.phi3_v.configuration import Phi3VConfig
from vlm2vec.errors import InputError

_EMBEDDINGS = "model.embed_tokens.weight"
# The image embedding shares the token embedding; a checkpoint written without de-duplication has it under this second
# name, too or only.
_ALIAS = "model.vision_embed_tokens.wte.weight"
NAMES = TensorNames(_EMBEDDINGS, "lm_head.weight", {_ALIAS: _EMBEDDINGS})


def load_config(folder: Path, found: Mapping[str, Shape]) -> Phi3VConfig:
    """Reads config.json as a `Phi3VConfig`; checks its width and depths against the weights (`found`).

    Raises:
        InputError: See `read_config`.
    """
    embeddings = found.get(_EMBEDDINGS) or found.get(_ALIAS)
    content = read_config(folder, found, embeddings[-1] if embeddings else None)
    try:
        config: Phi3VConfig = Phi3VConfig.from_dict(content)
    except Exception as error:  # transformers' validation raises several types
        raise InputError(
            f"{folder / CONFIG_FILE}: not a usable configuration ({' '.join(str(error).split())})"
        ) from error
    return config
