from __future__ import annotations

from pathlib import Path

import pytest

from eval.mmeb_flags import EncoderArguments, ScoringArguments, parse_arguments

ORIGINAL_FULL = (
    "--model_name TIGER-Lab/VLM2Vec-Full --encode_output_path outputs/ --num_crops 4 --max_len 256 --pooling last "
    "--normalize True --dataset_name TIGER-Lab/MMEB-eval --subset_name N24News CIRR HatefulMemes --dataset_split test "
    "--per_device_eval_batch_size 16"
)
ORIGINAL_LORA = (
    "--lora --model_name microsoft/Phi-3.5-vision-instruct --checkpoint_path TIGER-Lab/VLM2Vec-LoRA "
    "--encode_output_path outputs/ --num_crops 4 --max_len 256 --pooling eos --normalize True "
    "--dataset_name TIGER-Lab/MMEB-eval --subset_name N24News --dataset_split test --per_device_eval_batch_size 16"
)


def parse(command: str, image_dir: Path) -> tuple[EncoderArguments, ScoringArguments]:
    return parse_arguments([*command.split(), "--image_dir", str(image_dir)])


def test_the_commands_of_the_original_parse(tmp_path: Path) -> None:
    model, data = parse(ORIGINAL_FULL, tmp_path)
    assert (model.lora, model.normalize, model.num_crops, model.max_len) == (False, True, 4, 256)
    assert data.subset_name == ["N24News", "CIRR", "HatefulMemes"]
    assert data.per_device_eval_batch_size == 16
    model, _ = parse(ORIGINAL_LORA, tmp_path)
    assert (model.lora, model.checkpoint_path) == (True, "TIGER-Lab/VLM2Vec-LoRA")


def test_defaults(tmp_path: Path) -> None:
    model, data = parse("--model_name m --dataset_name d --encode_output_path o", tmp_path)
    assert (model.lora, model.pooling, model.normalize, model.num_crops, model.max_len) == (
        False,
        "eos",
        None,
        None,
        None,
    )
    assert (data.subset_name, data.dataset_split, data.per_device_eval_batch_size) == (["all"], "test", None)


@pytest.mark.parametrize(("flag", "value"), [("", True), ("True", True), ("false", False), ("0", False)])
def test_booleans_parse_bare_and_with_a_value(tmp_path: Path, flag: str, value: bool) -> None:
    model, _ = parse(f"--model_name m --dataset_name d --encode_output_path o --normalize {flag}", tmp_path)
    assert model.normalize is value
