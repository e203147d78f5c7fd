"""The encoder that a run's flags give."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from trials.exactness import count_calls
from trials.rig.run_flags import run_flags
from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.errors import InputError
from vlm2vec.model_folder.settings import ModelSettings
from vlm2vec.plan.run_plan import read_plan
from vlm2vec.training.encoder import build_encoder, with_model_settings
from vlm2vec.training.flags.run import RunSettings, parse_arguments
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


def test_a_run_has_the_prompts_and_limits_of_its_model_or_of_its_flags(golden_model_dir: Path, tmp_path: Path) -> None:
    own = PromptFormat(name="own", template="{instruction}: {content}", instruction="Represent")
    folder = shutil.copytree(golden_model_dir, tmp_path / "model")
    ModelSettings(num_crops=2, prompt_format=own).write(folder)

    def started(*flags: str) -> tuple[RunSettings, list[str]]:
        run = ["--max_steps", "1", "--global_batch_size", "2", *flags]
        arguments = parse_arguments(run_flags(folder, folder, folder, "zero2", *run))
        return with_model_settings(arguments.resolve(2, {"zero_optimization": {"stage": 2}}))

    settings, changes = started()
    assert (settings.encoder.prompt_format, settings.encoder.image_limits, changes) == (own, {"num_crops": 2}, [])
    assert build_encoder(settings.encoder).settings.prompt_format == own  # what checkpoints write
    assert settings.flags["prompt_format"] is None
    settings, changes = started("--prompt_format", "phi3_v", "--num_crops", "1")
    assert build_encoder(settings.encoder).settings.prompt_format == PromptFormat(name="phi3_v")
    assert settings.flags["prompt_format"] == "phi3_v"
    assert changes == [
        "num_crops is 1, but the model was saved with num_crops 2; its embeddings will differ",
        "prompt_format is phi3_v, but the model was saved with prompt_format own; its embeddings will differ",
    ]
    with pytest.raises(
        InputError, match=r"^--max_pixels: a phi3_v has no such limit on its images; use --num_crops, or"
    ):
        started("--max_pixels", "9")
    with pytest.raises(InputError, match=r'^--prompt_format: "own" is not a known format'):
        started("--prompt_format", "own")
    planned = run_flags(folder, folder, folder, "zero2", "--max_steps", "1", "--global_batch_size", "2")
    with pytest.raises(
        InputError, match=r"^--max_pixels: a phi3_v has no such limit on its images; use --num_crops, or"
    ):
        read_plan([*planned, "--max_pixels", "9"])
    with pytest.raises(InputError, match="--num_crops 0: must be 1 or more"):
        started("--num_crops", "0")
