"""The configuration in force as YAML: its content, and that `--config` repeats the run."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from trials.rig.launcher import REPOSITORY
from vlm2vec import train
from vlm2vec.batches import ChunkSizes
from vlm2vec.errors import InputError
from vlm2vec.model_folder.settings import ModelSettings
from vlm2vec.plan.run_plan import read_plan
from vlm2vec.training.flags.config_file import CONFIG_FILE, write_config
from vlm2vec.training.flags.run import RunSettings, argument_defaults, parse_arguments

NEEDED = ["--model_name", "m", "--dataset_name", "d", "--output_dir", "o", "--deepspeed", "ds_configs/zero2.json"]
ZERO2 = {"zero_optimization": {"stage": 2}}
STEPS_PER_EPOCH = 11
GOLDEN = Path(__file__).with_name("print_config.yaml")


def printed(flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the program prints, from the repository's root and without ranks."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["train", *flags])
    assert train.main() == 0
    return capsys.readouterr().out


def test_print_config_shows_every_flag_with_its_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--config", "launch/recipes/lora_1024.yaml", *NEEDED, "--lora_r", "4", "--warmup_ratio=0.05"]
    out = printed([*flags, "--print_config"], monkeypatch, capsys)
    assert out == GOLDEN.read_text()
    # It is a recipe, and prints as itself.
    (tmp_path / "again.yaml").write_text(out)
    again = printed(["--config", str(tmp_path / "again.yaml"), "--print_config"], monkeypatch, capsys)
    values = [[line.partition("  #")[0] for line in text.splitlines()] for text in (out, again)]
    assert values[0] == values[1]


def test_sources(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = "max_steps: 5\nseed: 7\nlearning_rate: 1e-3\nper_device_train_batch_size: 4\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    monkeypatch.setenv("WORLD_SIZE", "3")
    flags = ["--config", str(tmp_path / "recipe.yaml"), *NEEDED, "--seed", "8", "--num_train_epochs", "2"]
    lines = printed([*flags, "--no_duplicate_positives", "--print_config"], monkeypatch, capsys).splitlines()
    expected = {
        "seed: 8  # flag",
        "learning_rate: 0.001  # recipe",
        "no_duplicate_positives: true  # flag",
        "num_train_epochs: 2.0  # flag",
        "max_steps: null  # resolved when the run starts",
        "global_batch_size: 12  # resolved",
        "per_device_train_batch_size: null  # resolved",
        "chunk_tokens: 8192  # resolved",
        "keep_graphs: auto  # default",
        "matryoshka_dims: null  # default",
        "subset_name: [all]  # default",
    }
    assert expected - set(lines) == set()
    assert [line.partition(":")[0] for line in lines] == list(argument_defaults())


def test_modes_exclude_each_other_and_other_ranks_are_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="--dry_run and --print_config exclude each other"):
        printed([*NEEDED, "--dry_run", "--print_config"], monkeypatch, capsys)
    monkeypatch.setenv("RANK", "1")
    assert printed([*NEEDED, "--print_config"], monkeypatch, capsys) == ""


def test_another_program_refuses_a_mode_that_it_does_not_have() -> None:
    with pytest.raises(InputError, match="--print_config: no effect here"):
        read_plan([*NEEDED, "--max_steps", "1", "--global_batch_size", "4", "--print_config"])


def test_a_mode_is_a_flag_and_not_a_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A value that reads like a mode is a value."""
    flags = [*NEEDED, "--max_steps", "1", "--global_batch_size", "4", "--cache_dir=--dry_run"]
    with pytest.raises(InputError, match="--cache_dir: no effect"):
        printed([*flags, "--print_config"], monkeypatch, capsys)


def started(*flags: str) -> RunSettings:
    """Settings as a start completes them on a CPU, with a model that was saved with its longest text and crops."""
    batch = [] if "--per_device_train_batch_size" in flags else ["--global_batch_size", "16"]
    settings = parse_arguments([*NEEDED, *batch, *flags]).resolve(4, ZERO2)
    return completed(settings)


def completed(settings: RunSettings) -> RunSettings:
    encoder, chunking = settings.encoder, settings.chunking
    limits = {"num_crops": 4, **encoder.image_limits}
    stored = ModelSettings(max_len=encoder.max_len or 77).with_limits(limits)
    settings = settings.with_model(stored).with_length(STEPS_PER_EPOCH)
    has_dropout = encoder.lora is not None and encoder.lora.dropout > 0
    kept = 1 if chunking.keep_graphs is None else chunking.keep_graphs
    return settings.with_chunks(ChunkSizes(chunking.packing, chunking.no_grad_budget(has_dropout), kept))


@pytest.mark.parametrize(
    "flags",
    [
        ["--max_steps", "9", "--warmup_steps", "3"],
        ["--num_train_epochs", "2.5", "--warmup_ratio", "0.1", "--profile_steps", "27", "28"],
        ["--max_steps", "9", "--per_device_train_batch_size", "4", "--learning_rate", "3.3e-7", "--max_len", "50"],
        ["--max_steps", "9", "--lora", "--bf16", "--lora_target_modules", "o_proj, q_proj", "--lora_alpha", "8"],
        ["--max_steps", "9", "--lora", "--lora_dropout", "0", "--keep_graphs", "3", "--chunk_tokens", "99"],
        ["--max_steps", "9", "--gc_q_chunk_size", "3", "--gc_p_chunk_size", "4", "--matryoshka_dims", "8", "4"],
        ["--max_steps", "9", "--no_grad_chunk_tokens", "9000", "--resume", "auto", "--allow_changed", "seed"],
        ["--max_steps", "9", "--subset_name", "1", "yes", "a b", "\udce9: #", "--mixture_weights", "1=2", "yes=1"],
        [
            *("--max_steps", "9", "--save_best"),
            *("--eval_steps", "4", "--eval_dataset_name", "e", "--eval_image_dir", "0"),
            *("--learn_temperature", "--temperature_learning_rate", "0.1"),
        ],
    ],
    ids=" ".join,
)
def test_the_file_of_a_run_makes_the_same_run(flags: list[str], tmp_path: Path) -> None:
    first = started(*flags)
    write_config(tmp_path, first, ["a model: x", "two\nlines"])
    text = (tmp_path / CONFIG_FILE).read_text()
    assert text.startswith("# a model: x\n# two lines\n")
    again = completed(parse_arguments(["--config", str(tmp_path / CONFIG_FILE)]).resolve(4, ZERO2))
    for group in dataclasses.fields(RunSettings):
        if group.name != "arguments":
            assert getattr(again, group.name) == getattr(first, group.name)
    # On other ranks too: the batch is a number by now.
    elsewhere = parse_arguments(["--config", str(tmp_path / CONFIG_FILE)]).resolve(2, ZERO2)
    assert elsewhere.cluster.global_batch_size == first.cluster.global_batch_size


def test_a_later_start_rewrites_the_file(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        write_config(tmp_path, started("--max_steps", "9", "--seed", seed), [])
    assert list(tmp_path.iterdir()) == [tmp_path / CONFIG_FILE]
    assert "seed: 2  # flag\n" in (tmp_path / CONFIG_FILE).read_text()
