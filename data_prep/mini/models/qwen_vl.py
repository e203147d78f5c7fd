"""The miniatures of Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from data_prep.mini.models.weights import WeightNames, draw_weights
from vlm2vec.backbones.checkpoint import CONFIG_FILE
from vlm2vec.backbones.interface import Backbone, ItemProcessor
from vlm2vec.backbones.registry import family_named
from vlm2vec.formats.json_files import write_json
from vlm2vec.item_rules import IMAGE_TAG

# Whole words of the miniature become tokens; Qwen's vocabulary has 151,643.
BPE_VOCABULARY = 800
# A digit of the miniature, 32 x 32 pixels, is one token of 2 x 2 patches, so that in pairs and mosaics each digit is
# looks like a single digit.
PATCH_SIZE = 16
MIN_PIXELS, MAX_PIXELS = 32 * 32, 64 * 64  # one token, and the four of a mosaic
HIDDEN_SIZE = 64
LANGUAGE: dict[str, Any] = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 32768,
}
VISION: dict[str, Any] = {"depth": 2, "num_heads": 4, "patch_size": PATCH_SIZE, "spatial_merge_size": 2}
_UNIT = ("embed_tokens.weight", "pos_embed.weight")
_NORMS = ("norm", "ln_q")
_WRITERS = ("o_proj", "down_proj", "attn.proj", "fc2")
# The added tokens of Qwen2-VL in their order; Qwen2.5-VL and Qwen3-VL have more after them.
_SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
# What config.json calls some of them.
_NAMED_TOKENS = {
    **{"bos": "<|endoftext|>", "eos": "<|im_end|>", "image": "<|image_pad|>", "video": "<|video_pad|>"},
    **{"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"},
}
_ADDED = re.compile(r"<\|\w+\|>")
_SINCE_2_5 = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
_SINCE_3 = ("<tool_response>", "</tool_response>", "<think>", "</think>")
_LATER_TOKENS = {"qwen2_vl": (), "qwen2_5_vl": _SINCE_2_5, "qwen3_vl": (*_SINCE_2_5, *_SINCE_3)}
# How each family's items become prompts: as VLM2Vec trains them, or as Qwen3-VL-Embedding does.
_PROMPT_FORMATS = {"qwen2_vl": "vlm2vec", "qwen2_5_vl": "vlm2vec", "qwen3_vl": "qwen3_vl_embedding"}


def build(model_type: str, texts: Iterator[str], seed: int) -> tuple[Backbone, ItemProcessor]:
    """The untrained model and its processor.

    Args:
        model_type: Which of the three.
        texts: The texts on which the tokenizer is trained.
        seed: The seed of the weights.
    """
    family = family_named(model_type, "the miniature")
    prompt_format = family.prompt_formats[_PROMPT_FORMATS[model_type]]
    of_template = _ADDED.split(prompt_format.render("", 1))
    tokenizer = train_tokenizer(chain(texts, of_template), _LATER_TOKENS[model_type])
    content = tiny_config(model_type, tokenizer)
    model = family.backbone(family.backbone.config_class.from_dict(content))
    depths = {"blocks.": VISION["depth"], "layers.": LANGUAGE["num_hidden_layers"]}
    draw_weights(model, seed, WeightNames(norms=_NORMS, unit=_UNIT, writers=_WRITERS, depths=depths))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        write_json(Path(folder, CONFIG_FILE), content)
        limits = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
        return model, family.processor.from_pretrained(folder, prompt_format, **limits)


def train_tokenizer(texts: Iterator[str], later_tokens: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen's pipeline: NFC, its pattern of words, no bos or eos, added tokens.

    Args:
        texts: The texts on which it is trained.
        later_tokens: Added tokens after Qwen2-VL's.
    """
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner = Tokenizer(models.BPE())
    learner.normalizer, learner.pre_tokenizer = normalizers.NFC(), words
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator((IMAGE_TAG.sub("", text) for text in texts), trainer)
    learnt = json.loads(learner.to_str())["model"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=learnt["vocab"],
            merges=[tuple(merge) for merge in learnt["merges"]],
            continuing_subword_prefix="",
            end_of_word_suffix="",
        )
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizers.NFC(), words, decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in _SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in later_tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def tiny_config(model_type: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The tiny model's config.json, as published ones are, with the vocabulary rounded up to a multiple of 32."""
    language = {**LANGUAGE, "vocab_size": math.ceil(len(tokenizer) / 32) * 32}
    width = {"hidden_size": HIDDEN_SIZE, "intermediate_size": 128, "out_hidden_size": HIDDEN_SIZE}
    visions: dict[str, dict[str, Any]] = {
        "qwen2_vl": {"embed_dim": HIDDEN_SIZE, "mlp_ratio": 2, "hidden_size": HIDDEN_SIZE},
        # Windows of 2 x 2 tokens in the first layer; the second one sees the whole image.
        "qwen2_5_vl": {**width, "window_size": 4 * PATCH_SIZE, "fullatt_block_indexes": [1]},
        "qwen3_vl": {**width, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    }
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in _NAMED_TOKENS.items()}
    language |= {name: ids.pop(name) for name in ("bos_token_id", "eos_token_id")}
    content: dict[str, Any] = {
        "model_type": model_type,
        **ids,
        "vision_config": {**VISION, **visions[model_type]},
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    if model_type == "qwen3_vl":
        rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
        content["text_config"] = {**language, "rope_scaling": rope, "head_dim": 16, "tie_word_embeddings": True}
    else:
        content |= {**language, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    return content
