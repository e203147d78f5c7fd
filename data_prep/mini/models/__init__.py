"""Untrained miniatures of the model families: the full-size code with small numbers, trainable on a CPU.

There is one file per family. A builder takes the miniature benchmark's texts, on which it trains a tokenizer, and the
seed of the weights. The same texts and seed give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vlm2vec.backbones.interface import Backbone, ItemProcessor

Builder = Callable[[Iterator[str], int], tuple[Backbone, ItemProcessor]]


def _phi3_v(texts: Iterator[str], seed: int) -> tuple[Backbone, ItemProcessor]:
    from data_prep.mini.models import phi3_v

    return phi3_v.build(texts, seed)


def _qwen_vl(model_type: str) -> Builder:
    def build(texts: Iterator[str], seed: int) -> tuple[Backbone, ItemProcessor]:
        from data_prep.mini.models import qwen_vl

        return qwen_vl.build(model_type, texts, seed)

    return build


# Builders by `model_type`. Each imports its family's layers, which takes seconds, only when it is called.
BUILDERS: dict[str, Builder] = {
    "phi3_v": _phi3_v,
    **{name: _qwen_vl(name) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")},
}
