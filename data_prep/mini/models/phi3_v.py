"""The miniature of Phi-3.5-V."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from data_prep.mini.models.weights import WeightNames, draw_weights
from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VImageProcessor, Phi3VModel, Phi3VProcessor

# Whole words of the miniature become tokens; Phi-3.5 has 32,000.
BPE_VOCABULARY = 800
# As in the paper. A crop has the size of one of the miniature's tiles, so that in pairs and mosaics each digit fills
# one crop and looks like a single digit.
NUM_CROPS = 4
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,  # the last one never runs, as in the full-size model
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 16,  # 2 x 2 patches: one token per view
    "projection_dim": 64,
}
LANGUAGE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
_UNIT = ("embed_tokens.weight", "embedding.weight", "_GN")
_WRITERS = ("o_proj", "down_proj", "out_proj", "fc2")
_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
# Phi-3.5's tokens after the vocabulary, in its order: (text, whether blanks behind it are swallowed).
_ADDED_TOKENS = (
    ("<|endoftext|>", False),
    ("<|assistant|>", True),
    *((f"<|placeholder{number}|>", True) for number in (1, 2, 3, 4)),
    ("<|system|>", False),
    ("<|end|>", False),
    *((f"<|placeholder{number}|>", True) for number in (5, 6)),
    ("<|user|>", False),
    *((f"<|placeholder{number}|>", True) for number in range(7, 40)),
    ("<|image|>", True),
)


def build(texts: Iterator[str], seed: int) -> tuple[Phi3VModel, Phi3VProcessor]:
    """The untrained model and its processor.

    Args:
        texts: The texts on which the tokenizer is trained.
        seed: The seed of the weights.
    """
    tokenizer = train_tokenizer(texts)
    model = Phi3VModel(tiny_config(tokenizer))
    depths = {"encoder.": VISION["num_hidden_layers"], "layers.": LANGUAGE["num_hidden_layers"]}
    draw_weights(model, seed, WeightNames(norms=("norm",), unit=_UNIT, writers=_WRITERS, depths=depths))
    return model, Phi3VProcessor(tokenizer, Phi3VImageProcessor(NUM_CROPS, VISION["image_size"], VISION["patch_size"]))


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-fallback BPE with Phi-3.5's pipeline: "▁" for blanks and in front, bos, no pre-tokenizer, added tokens."""
    learner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # During training only: a token may begin with a blank but not contain one elsewhere, and a line break is a token.
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁*[^▁\n]+|\n|▁+"), behavior="isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_VOCABULARY, special_tokens=["<unk>", "<s>", "</s>", *_BYTES], show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    learnt = json.loads(learner.to_str())["model"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=learnt["vocab"],
            merges=[tuple(merge) for merge in learnt["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = learner.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "<s>")])
    tokenizer.add_tokens([AddedToken("</s>", rstrip=True, normalized=False, special=False)])
    tokenizer.add_special_tokens([AddedToken(name, rstrip=strip, normalized=False) for name, strip in _ADDED_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> Phi3VConfig:
    """The configuration of the tiny model, its vocabulary rounded up to a multiple of 32."""
    return Phi3VConfig(
        vocab_size=math.ceil(len(tokenizer) / 32) * 32,
        pad_token_id=tokenizer.pad_token_id,
        vision_config=VISION,
        dtype=torch.float32,
        **LANGUAGE,
    )
