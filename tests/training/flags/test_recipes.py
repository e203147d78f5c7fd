"""Shipped recipes and engine files: every one parses and gives a configuration that DeepSpeed accepts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from trials.rig.launcher import REPOSITORY
from vlm2vec.plan.run_plan import parse_cluster, read_plan
from vlm2vec.training.engine import engine_config
from vlm2vec.training.flags.engine_file import read_engine_file
from vlm2vec.training.flags.run import parse_arguments

RECIPES = sorted((REPOSITORY / "launch/recipes").glob("*.yaml"))
# The model that each recipe of another family is for, and the tokens of its largest image.
QWEN = {
    "qwen2_5_vl_3b_lora_1024": ("Qwen/Qwen2.5-VL-3B-Instruct", 1280),
    "qwen2_vl_2b_frozen_vision_1024": ("Qwen/Qwen2-VL-2B-Instruct", 1280),
    "qwen2_vl_2b_lora_1024": ("Qwen/Qwen2-VL-2B-Instruct", 2304),
    "qwen2_vl_2b_lora_256_24gb": ("Qwen/Qwen2-VL-2B-Instruct", 512),
    "qwen3_vl_2b_lora_1024": ("Qwen/Qwen3-VL-2B-Instruct", 1280),
}
ONE_GPU = ("lora_1024_80gb", "lora_256_24gb", "qwen2_vl_2b_lora_256_24gb")
ENGINES = sorted((REPOSITORY / "ds_configs").glob("*.json"))


@pytest.mark.parametrize("engine", ENGINES, ids=lambda path: path.stem)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_with_every_engine(recipe: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = parse_arguments(
        [
            *("--config", str(recipe), "--deepspeed", str(engine)),
            *("--model_name", "m", "--dataset_name", "d", "--output_dir", "o"),
        ]
    )
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    config = engine_config(arguments.resolve(1, read_engine_file(engine)).engine)
    accepted = DeepSpeedConfig(config)
    assert accepted.zero_optimization_stage == int(engine.stem[4])
    assert accepted.gradient_clipping == arguments.training.max_grad_norm
    assert accepted.train_batch_size == arguments.global_batch_size(num_ranks=1)


def test_something_ships() -> None:
    assert [path.stem for path in RECIPES] == [
        *("full_2048", "lora_1024", "lora_1024_80gb", "lora_256_24gb", "mini"),
        *QWEN,
    ]
    assert [path.stem for path in ENGINES] == ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]


def test_the_papers_settings() -> None:
    recipe = REPOSITORY / "launch/recipes/lora_1024.yaml"
    needed = ["--model_name", "m", "--dataset_name", "d", "--output_dir", "o", "--deepspeed", str(ENGINES[0])]
    arguments = parse_arguments(["--config", str(recipe), *needed]).as_dict()
    expected = {
        **{"global_batch_size": 1024, "temperature": 0.02, "learning_rate": 2e-5, "max_steps": 2000},
        **{"num_crops": 4, "max_len": 256, "lora_r": 8, "lora_alpha": 64, "bf16": True, "num_sample_per_subset": 50000},
        **{"first_n": True},
    }
    assert {name: arguments[name] for name in expected} == expected


@pytest.mark.parametrize("name", QWEN)
def test_a_recipe_fits_its_model(name: str) -> None:
    """Its prompt format and limits are the family's, its adapter finds layers, and its images are not too large."""
    model, tokens = QWEN[name]
    recipe = REPOSITORY / f"launch/recipes/{name}.yaml"
    assert f"--config launch/recipes/{name}.yaml --model_name {model} " in recipe.read_text()
    plan = read_plan(["--config", str(recipe), "--model_name", model, "--deepspeed", str(ENGINES[1])])
    processor = plan.model.processor
    assert processor.num_image_tokens(*processor.largest_image_size) == tokens
    assert plan.settings.encoder.prompt_format == processor.prompt_format.name
    trained = {name for name, each in plan.model.smallest.named_parameters() if each.requires_grad}
    assert any("down_proj" in name for name in trained)
    # The original's names of layers fit the tower of Qwen2.5-VL too.
    assert any("visual.blocks" in each for each in trained) is name.startswith("qwen2_5_vl")
    assert plan.settings.encoder.freeze_vision_tower is ("frozen_vision" in name)


@pytest.mark.parametrize("name", ONE_GPU)
def test_a_recipe_for_one_gpu_is_planned_for_its_card(name: str) -> None:
    command, expected = header(name)
    cluster, _, flags = parse_cluster(command)
    assert (cluster.num_ranks, f"_{cluster.gpu_memory / 2**30:.0f}gb") == (1, name[name.rindex("_") :])
    assert expected * 2**30 <= cluster.usable_memory
    assert flags[flags.index("--config") + 1] == f"launch/recipes/{name}.yaml"


def test_the_memory_in_a_header_is_the_plans() -> None:
    command, expected = header("lora_256_24gb")  # the others take seconds more
    plan = read_plan(command)
    assert plan.memory(plan.zero).peak / 2**30 == pytest.approx(expected, abs=0.05)


def header(name: str) -> tuple[list[str], float]:
    """The flags of the plan that a recipe's header names, and the GiB that it expects."""
    text = (REPOSITORY / f"launch/recipes/{name}.yaml").read_text()
    (command,), (expected,) = re.findall(r"vlm2vec\.plan (.+)", text), re.findall(r"Expected: ([\d.]+) GiB", text)
    return shlex.split(command), float(expected)
