"""Flags, recipes and refused combinations."""

from __future__ import annotations

import dataclasses
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from data_prep.convert import parser
from eval.mmeb_flags import EncoderArguments, ScoringArguments
from vlm2vec.backbones.image_limits import OLD_NAMES, OLD_NAMES_OF_CONVERSION
from vlm2vec.errors import InputError
from vlm2vec.export.__main__ import parser as export_parser
from vlm2vec.messages.old_names import CONVERSION, EVALUATION, EXPORT, TRAINING
from vlm2vec.training.flags import watch
from vlm2vec.training.flags.run import POLICIES, argument_defaults, parse_arguments

PROGRAMS = {
    "training": ({**TRAINING, **OLD_NAMES}, {f"--{name}" for name in argument_defaults()}),
    "evaluation": (
        {**EVALUATION, **OLD_NAMES},
        {f"--{each.name}" for group in (EncoderArguments, ScoringArguments) for each in dataclasses.fields(group)},
    ),
    "conversion": ({**CONVERSION, **OLD_NAMES_OF_CONVERSION}, set(parser()._option_string_actions)),
    "export": (EXPORT, set(export_parser()._option_string_actions)),
}
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
        (["--learning_rat", "1"], "unknown option --learning_rat; did you mean --learning_rate?"),
        (["--resume_from_checkpoint", "x"], "use --resume auto"),
        (["--gradient_accumulation_steps=4"], "use --global_batch_size"),
        (["--image_resolution", "x"], "--num_crops"),
        (["--num_train_epochs", "3"], "--max_steps 9 and --num_train_epochs 3.0 exclude each other"),
        (["--warmup_ratio", "0.1", "--warmup_steps", "2"], "exclude each other"),
        (["--warmup_ratio", "2"], "from 0 to 1"),
        (["--pooling", "mean"], "use eos"),
        (["--normalize", "False"], "leave it true"),
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
        (["--temperature_by", "subset"], "--temperature_by: no effect without --learn_temperature"),
        (["--learn_temperature", "--temperature_by", "row"], "--temperature_by row: must be one of none, subset, meta"),
        (["--hard_negative_scope", "own"], "without hard negatives; add --hard_negatives or --mined_negatives"),
        (["--hard_negatives", "--hard_negative_scope", "mine"], "--hard_negative_scope mine: must be one of all, own"),
        (["--hardness_weight", "-1"], "--hardness_weight -1.0: must be at least 0 and finite"),
        (["--hardness_weight", "nan"], "--hardness_weight nan: must be at least 0 and finite"),
        (["--false_negative_similarity", "1"], "--false_negative_similarity 1.0: must be between -1 and 1"),
        (["--false_negative_margin", "-2"], "--false_negative_margin -2.0: must be between -2 and 2"),
        (["--false_negative_source", "me"], "--false_negative_source me: must be one of model, teacher"),
        (["--false_negative_source", "teacher"], "--false_negative_source teacher: give --mined"),
        (
            ["--false_negative_source", "teacher", "--mined", "m", "--false_negative_margin", "0.1"],
            "--false_negative_margin: no effect with --false_negative_source teacher",
        ),
        (["--distill_weight", "1", "--hard_negatives"], "--distill_weight: no effect without --mined_negatives"),
        (["--distill_weight", "-1", "--mined", "m", "--mined_negatives", "1"], "--distill_weight -1.0: must be"),
        (["--distill_temperature", "1"], "--distill_temperature: no effect without --distill_weight"),
        (
            ["--distill_temperature", "0", "--distill_weight", "1", "--mined", "m", "--mined_negatives", "1"],
            "--distill_temperature 0.0: must be positive",
        ),
        (["--mined", "m"], "without --mined_negatives, --mined_clusters or --false_negative_source teacher"),
        (["--seed", "x"], "seed"),
        (["--save_best", "--eval_subsets", "IND"], "--eval_subsets, --save_best: no effect without --eval_steps"),
        (["--report_to", "mlflow"], "--report_to mlflow: mlflow is none of tensorboard, wandb, trackio, none"),
        (["--report_to", "none", "wandb"], "none excludes all others"),
        (["--report_to", "wandb", "wandb"], "give each tracker once"),
        (["--project", "mine"], "--project: no effect without --report_to wandb or --report_to trackio"),
        (["--report_to", "wandb", "--project", "a/b"], "--project 'a/b': not a name"),
        (["--profile_steps", "3"], "give two numbers"),
        (["--profile_steps", "0", "2"], "from 1 to --max_steps 9"),
        (["--profile_steps", "4", "3"], "the first step of a trace is not after its last"),
        (["--profile_steps", "3", "10"], "from 1 to --max_steps 9"),
        (["--flops_profile_step", "10"], "from 1 to --max_steps 9"),
        (["--profile_steps", "3", "5", "--flops_profile_step", "4"], "choose a different step"),
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


def test_a_tracker_that_is_not_installed_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [*NEEDED, *BATCH, "--report_to", "tensorboard", "trackio"]
    assert parse_arguments(flags).training.report_to == ["tensorboard", "trackio"]
    monkeypatch.setattr(watch, "find_spec", lambda name: None if name == "trackio" else find_spec(name))
    message = "--report_to tensorboard trackio: the package trackio is not installed; pip install trackio, or leave it"
    with pytest.raises(InputError, match=message):
        parse_arguments(flags)
    assert parse_arguments([*NEEDED, *BATCH]).training.report_to == ["tensorboard"]
    none = parse_arguments([*NEEDED, *BATCH, "--report_to", "none"]).resolve(2, {"zero_optimization": {"stage": 2}})
    assert none.watch.report_to == ()


def test_the_length_of_a_run_in_epochs(tmp_path: Path) -> None:
    without_steps = [*NEEDED[:-2], *BATCH]
    with pytest.raises(InputError, match="--max_steps 0: must be at least 1; or give --num_train_epochs"):
        parse_arguments(without_steps)
    epochs = parse_arguments([*without_steps, "--num_train_epochs", "2.5", "--warmup_ratio", "0.1"])
    training = epochs.with_steps(steps_per_epoch=11).training
    assert (training.max_steps, training.warmup_steps) == (28, 3)  # 27.5 and 2.8, rounded up
    steps = parse_arguments([*NEEDED, *BATCH, "--warmup_steps", "4"])
    assert steps.with_steps(steps_per_epoch=11) == steps
    late = parse_arguments([*without_steps, "--num_train_epochs", "1", "--profile_steps", "11", "12"])
    with pytest.raises(InputError, match="from 1 to --max_steps 11"):
        late.with_steps(steps_per_epoch=11)
    # On the command line either replaces the other one of a recipe.
    (tmp_path / "recipe.yaml").write_text("max_steps: 9\nwarmup_steps: 2\n")
    recipe = ["--config", str(tmp_path / "recipe.yaml")]
    training = parse_arguments([*recipe, *without_steps, "--num_train_epochs", "3", "--warmup_ratio", "0.5"]).training
    assert (training.max_steps, training.num_train_epochs, training.warmup_steps) == (0, 3, 0)
    hyphens = parse_arguments([*recipe, *without_steps, "--num-train-epochs=3", "--warmup-ratio", "0.5"])
    assert hyphens.training == training
    assert hyphens.sources["num_train_epochs"] == "flag"
    assert not {"max_steps", "warmup_steps"} & set(hyphens.sources)
    with pytest.raises(InputError, match="exclude each other"):
        parse_arguments([*NEEDED, *BATCH, "--num_train_epochs", "3", "--config", str(tmp_path / "recipe.yaml")])


def test_a_resume_compares_steps_and_not_how_they_were_given() -> None:
    assert not any(POLICIES[name].is_compared_on_resume for name in ("num_train_epochs", "warmup_ratio"))
    assert all(POLICIES[name].is_compared_on_resume for name in ("max_steps", "warmup_steps"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: x", "seed: 'x' is not a whole number"),
        ("learning_rate: fast", "learning_rate: 'fast' is not a number"),
        ("lora: maybe", "lora: 'maybe' is not true or false"),
        ("seed: [1, 2]", r"seed: \[1, 2\] is a list, the flag takes one value"),
        ("matryoshka_dims: [64, a]", "matryoshka_dims: 'a' is not a whole number"),
        ("subset_name: []", "subset_name: an empty list"),
        ("model_name: {a: 1}", "model_name: {'a': 1} is not a single value"),
        ("learning_rat: 1", r"unknown key 'learning_rat'; did you mean --learning_rate\?"),
        ("run_name: mine", "unknown key 'run_name': trackers name a run by its --output_dir"),
        ("seed: 1\nseed: 2", "the key 'seed' occurs twice"),
    ],
)
def test_a_bad_value_in_a_recipe_is_named_with_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"recipe\.yaml: {message}") as refused:
        parse_arguments([*NEEDED, *BATCH, "--config", str(tmp_path / "recipe.yaml")])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_old_name_is_a_flag_and_no_advice_names_one_that_is_none(program: str) -> None:
    old_names, known = PROGRAMS[program]
    assert not {f"--{name}" for name in old_names} & known
    every = set().union(*(flags for _, flags in PROGRAMS.values())) | {"--ddp_timeout"}
    for name, advice in old_names.items():
        named = set(re.findall(r"--\w+", advice))
        assert named <= (known if advice.startswith("use ") else every), name


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
