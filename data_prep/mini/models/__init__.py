"""Untrained miniatures of the model families: the full-size code with small numbers, trainable on a CPU.

One file a family. A builder takes the miniature benchmark's texts, for a tokenizer of its own, and the seed of the
weights; the same texts and seed give the same bytes.
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


# By `model_type`. Each imports its family's layers, which takes seconds, when it is asked for.
BUILDERS: dict[str, Builder] = {
    "phi3_v": _phi3_v,
    **{name: _qwen_vl(name) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")},
}
