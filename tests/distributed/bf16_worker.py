"""One rank: DeepSpeed's bf16 engine around the reference model; prints the embeddings' worst cosine to float32."""

from __future__ import annotations

import sys
from pathlib import Path

import deepspeed
import torch

from tests import golden
from vlm2vec import VLM2Vec
from vlm2vec.training.engine import close_ranks, initialize_ranks

CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-5, "torch_adam": True}},
}


def main(folder: Path) -> None:
    initialize_ranks(timeout_seconds=60)
    encoder = VLM2Vec.from_pretrained(folder, dtype=torch.float32)
    trainable = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(model=encoder, model_parameters=trainable, config=CONFIG)
    assert next(encoder.parameters()).dtype == torch.bfloat16
    case = golden.read("train/train.json")["query"]
    batch = golden.batch_of(folder, case["texts"], case["images"], case["num_crops"])
    with torch.no_grad():
        vectors = engine(**batch)
    expected = golden.tensors("train/gradients.safetensors")["query_embeddings"]
    print("cosine", torch.nn.functional.cosine_similarity(vectors.float(), expected).min().item())
    close_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
