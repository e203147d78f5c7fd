"""Writes a tiny random-weights model for the miniature: the full-size code with small numbers, trainable on a CPU.

    python -m data_prep.mini_model --dataset_name DATA/MMEB-train --output_dir OUT [--seed 0]

The tokenizer is trained on the miniature's texts and has Phi-3.5's pipeline and added tokens. The same seed and texts
give the same bytes.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from data_prep.command_line import Parser
from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VImageProcessor, Phi3VModel, Phi3VProcessor
from vlm2vec.errors import InputError, run_program

# Whole words of the miniature become tokens; Phi-3.5 has 32,000.
BPE_VOCABULARY = 800
# As in the paper. A crop is as large as one of the miniature's tiles, so that in pairs and mosaics each digit fills a
# crop of its own and is recognised like a single one.
NUM_CROPS = 4
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,  # the last one is never run, as in the full-size model
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 16,  # 2 x 2 patches: one token a view
    "projection_dim": 64,
}
LANGUAGE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
# Marks a folder as this program's own.
MARK_FILE = "mini_model.json"
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


def read_texts(dataset: Path) -> Iterator[str]:
    """All texts of an MMEB-train folder, every split.

    Raises:
        InputError: no parquet files, or one that cannot be read.
    """
    files = sorted(dataset.glob("*/*.parquet"))
    if not files:
        raise InputError(f"{dataset}: no <Subset>/*.parquet; build the miniature with python -m data_prep.mini_mmeb")
    for file in files:
        try:
            columns = [name for name in ("qry", "pos_text", "neg_text") if name in pq.read_schema(file).names]
            table = pq.read_table(file, columns=columns)
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: not a readable parquet file ({error})") from error
        for column in table.columns:
            yield from (text for text in column.to_pylist() if text)


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-fallback BPE with Phi-3.5's pipeline: "▁" for blanks and in front, bos, no pre-tokenizer, added tokens."""
    learner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # While learning only: tokens may begin with a blank but not run across one, and a line break is a token.
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


def initialise(model: Phi3VModel, seed: int) -> None:
    """Draws all weights, for training from scratch.

    Linear layers keep their input's scale (standard deviation fan_in^-1/2), those that write into a residual stream are
    scaled down by its depth; embeddings and separators are of size 1. Transformers' own 0.02 would leave a narrow
    model's attention flat, and all items with the same last word at almost the same vector.
    """
    generator = torch.Generator().manual_seed(seed)
    depth = {"layers.": model.config.num_hidden_layers, "encoder.": model.config.vision_config.num_hidden_layers}
    writers = ("o_proj", "down_proj", "out_proj", "fc2")
    for name, parameter in sorted(model.named_parameters()):
        if name.endswith("bias"):
            parameter.data.zero_()
        elif "norm" in name:
            parameter.data.fill_(1.0)
        else:
            std = 1.0
            if parameter.dim() in (2, 4) and "embed" not in name.rsplit(".", 2)[-2] and "GN" not in name:
                std = parameter[0].numel() ** -0.5
            if any(writer in name for writer in writers):
                layers = next(count for key, count in reversed(depth.items()) if key in name)
                std *= (2 * layers) ** -0.5
            parameter.data.normal_(0.0, std, generator=generator)


def build_mini_model(dataset: Path, output_dir: Path, seed: int = 0) -> int:
    """Writes the tiny model's folder; it appears under its final name only when it is complete.

    Args:
        dataset: the miniature's MMEB-train folder, for its texts.
        output_dir: a new folder, or one that this program wrote, which is replaced.
        seed: decides the weights.

    Returns:
        The number of parameters.

    Raises:
        InputError: no texts, or the output folder holds something else.
    """
    if (
        output_dir.exists()
        and not (output_dir / MARK_FILE).is_file()
        and (not output_dir.is_dir() or any(output_dir.iterdir()))
    ):
        raise InputError(f"{output_dir}: exists and is not a mini model; remove it or choose another folder")
    tokenizer = train_tokenizer(read_texts(dataset))
    model = Phi3VModel(tiny_config(tokenizer))
    initialise(model, seed)
    images = Phi3VImageProcessor(NUM_CROPS, VISION["image_size"], VISION["patch_size"])
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=".mini-model-") as temporary:
        folder = Path(temporary, "new")
        model.save_pretrained(str(folder))
        Phi3VProcessor(tokenizer, images).save_pretrained(folder)
        (folder / MARK_FILE).write_text(json.dumps({"seed": seed}) + "\n", encoding="utf-8")
        if output_dir.exists():
            os.replace(output_dir, Path(temporary, "old"))
        os.replace(folder, output_dir)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Parses the command line and builds."""
    parser = Parser(prog="python -m data_prep.mini_model", description="Write the tiny model.")
    parser.add_argument("--dataset_name", type=Path, required=True, help="the miniature's MMEB-train folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="the model's folder")
    parser.add_argument("--seed", type=int, default=0, help="decides the weights (default 0)")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()  # there is one small file to write
    count = build_mini_model(arguments.dataset_name, arguments.output_dir, arguments.seed)
    print(f"{arguments.output_dir}: {count:,} parameters")


if __name__ == "__main__":
    sys.exit(run_program(main))
