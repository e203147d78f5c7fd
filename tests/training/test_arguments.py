"""Flags, recipes and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm2vec.errors import InputError
from vlm2vec.training.arguments import parse_arguments

NEEDED = ["--model_name", "m", "--dataset_name", "d", "--output_dir", "o", "--deepspeed", "z.json", "--max_steps", "9"]
BATCH = ["--global_batch_size", "64"]


def test_the_originals_defaults() -> None:
    arguments = parse_arguments([*NEEDED, *BATCH]).as_dict()
    expected = {
        "temperature": 0.02,
        "max_len": None,
        "learning_rate": 2e-5,
        "lora": False,
        "adam_beta2": 0.999,
        "seed": 42,
    }
    assert {name: arguments[name] for name in expected} == expected
    assert "local_rank" not in arguments


def test_booleans_bare_and_with_a_value() -> None:
    arguments = parse_arguments([*NEEDED, *BATCH, "--lora", "--normalize", "True", "--bf16", "false"])
    assert arguments.model.lora
    assert arguments.model.normalize
    assert not arguments.model.bf16


def test_flags_win_over_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 1e-3\nsubset_name: [A, B]\nlora: true\nglobal_batch_size: 8\nwarmup_steps: 3\n")
    arguments = parse_arguments(["--config", str(recipe), *NEEDED, "--warmup_steps", "5", "--subset_name", "C"])
    assert arguments.training.learning_rate == 1e-3
    assert arguments.training.warmup_steps == 5
    assert arguments.data.subset_name == ["C"]
    assert arguments.model.lora
    assert arguments.global_batch_size(num_ranks=4) == 8


def test_batch_size_a_device() -> None:
    arguments = parse_arguments([*NEEDED, "--per_device_train_batch_size", "16"])
    assert arguments.global_batch_size(num_ranks=4) == 64


@pytest.mark.parametrize(
    ("extra", "remedy"),
    [
        (["--frobnicate", "1"], "--frobnicate"),
        (["--learning_rat", "1"], "--learning_rat"),
        (["--pooling", "mean"], "use eos"),
        (["--normalize", "False"], "leave it True"),
        (["--grad_cache", "False"], "--chunk_tokens"),
        (["--image_dir", "x"], "data_prep.convert"),
        (["--per_device_train_batch_size", "4"], "either --global_batch_size or"),
        (["--gc_q_chunk_size", "4"], "give both"),
        (["--gc_q_chunk_size", "0", "--gc_p_chunk_size", "4"], "at least 1"),
        (["--gc_q_chunk_size", "4", "--gc_p_chunk_size", "4", "--chunk_tokens", "9"], "exclude each other"),
        (["--lora_r", "4"], "without --lora"),
        (["--lora", "--freeze_projector"], "no effect with --lora"),
        (["--temperature_learning_rate", "0.1"], "without --learn_temperature"),
        (["--keep_graphs", "many"], "'auto' or a number"),
        (["--no_grad_chunk_tokens", "100"], "at least --chunk_tokens"),
        (["--max_steps", "0"], "at least 1"),
        (["--warmup_steps", "10"], "more than --max_steps"),
        (["--temperature", "0"], "positive"),
        (["--seed", "x"], "seed"),
        (["--save_best", "--eval_subsets", "IND"], "--eval_subsets, --save_best: no effect without --eval_steps"),
        (["--profile_steps", "3"], "give two numbers"),
        (["--profile_steps", "0", "2"], "from 1 to --max_steps 9"),
        (["--profile_steps", "4", "3"], "the first of a trace before the last"),
        (["--profile_steps", "3", "10"], "from 1 to --max_steps 9"),
        (["--flops_profile_step", "10"], "from 1 to --max_steps 9"),
        (["--profile_steps", "3", "5", "--flops_profile_step", "4"], "choose another step"),
        (["--peak_tflops", "0"], "positive"),
        (["--eval_allow_links", "True"], "--eval_allow_links: no effect without --eval_steps"),
        (["--eval_steps", "5"], "needs --eval_dataset_name and --eval_image_dir"),
        (["--eval_steps", "0", "--eval_dataset_name", "d", "--eval_image_dir", "i"], "at least 1"),
    ],
)
def test_refusals_name_the_remedy(extra: list[str], remedy: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_arguments([*NEEDED, *BATCH, *extra])
    assert remedy in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_batch_size_is_needed() -> None:
    with pytest.raises(InputError, match="either --global_batch_size or"):
        parse_arguments(NEEDED)


@pytest.mark.parametrize("text", ["unknown_key: 1\n", "- a list\n", "a: [unclosed\n", ""])
def test_bad_recipes_name_the_file(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(InputError, match=r"recipe\.yaml") as refused:
        parse_arguments(["--config", str(recipe), *NEEDED, *BATCH])
    assert "\n" not in str(refused.value)


def test_a_missing_recipe_names_the_file() -> None:
    with pytest.raises(InputError, match=r"absent\.yaml"):
        parse_arguments(["--config", "absent.yaml", *NEEDED, *BATCH])
