"""The encoder that a run's flags make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trials.exactness import count_calls
from trials.rig.run_flags import run_flags
from vlm2vec.training.encoder import build_encoder
from vlm2vec.training.flags.run import parse_arguments
from vlm2vec.training.model import encoder_inputs


@pytest.mark.parametrize("adapter", [[], ["--lora"], ["--lora", "--lora_use_dora", "False"]], ids=" ".join)
def test_gradient_checkpointing_runs_every_layer_again(adapter: list[str], mini_model_dir: Path) -> None:
    for checkpointing, expected in (([], 1), (["--gradient_checkpointing"], 2)):
        run = [*("--max_steps", "1", "--global_batch_size", "2"), *adapter, *checkpointing]
        arguments = parse_arguments(run_flags(mini_model_dir, mini_model_dir, mini_model_dir, "zero3", *run))
        encoder = build_encoder(arguments.resolve(2, {"zero_optimization": {"stage": 3}}).encoder)
        calls = [count_calls(layer.self_attn) for layer in encoder.base.model.layers]
        tokens = torch.ones(1, 4, dtype=torch.long)
        encoder(input_ids=tokens, attention_mask=tokens).sum().backward()
        assert [each.total() for each in calls] == [expected] * len(calls)


def test_chunks_of_texts_run_the_dummy_where_images_alone_are_trained(mini_model_dir: Path) -> None:
    for targets, expected in (([], False), (["--lora_target_modules", "q_proj,v_proj"], True)):
        run = ["--max_steps", "1", "--global_batch_size", "2", "--lora", *targets]
        arguments = parse_arguments(run_flags(mini_model_dir, mini_model_dir, mini_model_dir, "zero2", *run))
        settings = arguments.resolve(2, {"zero_optimization": {"stage": 2}}).encoder
        encoder = build_encoder(settings)
        chunk = encoder_inputs(encoder, settings).padding_chunk()
        vectors = encoder(**chunk.arguments(torch.device("cpu"), dummy_image=False))
        assert vectors.requires_grad
        assert ("dummy_image" in chunk.inputs) is expected
