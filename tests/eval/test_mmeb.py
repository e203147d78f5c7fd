from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eval import mmeb
from eval.arguments import parse_arguments
from eval.mmeb import evaluate, read_data
from tests.eval.conftest import TableEncoder, row
from vlm2vec.errors import EXIT_BAD_INPUT, run_program

MODEL = {"model_name": "hand", "checkpoint_path": None, "num_crops": 4, "fingerprint": "0123456789abcdef"}
EAST, NORTH, NEAR_EAST = [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]


@pytest.fixture
def options(tmp_path: Path, write_dataset, write_image) -> list[str]:
    """A folder with GQA (picture queries, 1 of 2 rows won) and a user's own dataset (2 of 3), and its options."""
    write_image("GQA/1.png")
    write_dataset(
        "GQA", [row("east?", ["yes", "no"], "GQA/1.png"), row("east?", ["no", "yes", "it's\ntrue"], "GQA/1.png")]
    )
    write_dataset("own", [row("up", ["no", "yes"]), row("up", ["yes", "no"]), row("up", ["no", "yes"])])
    return [
        *("--model_name", "hand", "--dataset_name", str(tmp_path / "data"), "--image_dir", str(tmp_path / "images")),
        *("--encode_output_path", str(tmp_path / "out")),
    ]


@pytest.fixture
def encoder() -> TableEncoder:
    vectors = {("east?", "1.png"): EAST, ("up", ""): NORTH, ("yes", ""): NEAR_EAST, ("no", ""): NORTH}
    return TableEncoder({**vectors, ("it's\ntrue", ""): EAST})


def run(encoder: TableEncoder, options: list[str]) -> dict:
    _, data_arguments = parse_arguments(options)
    return evaluate(encoder, MODEL, read_data(data_arguments), data_arguments)


def test_a_run_with_known_answers(tmp_path: Path, options, encoder):
    summary = run(encoder, options)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        *("GQA_pred.txt", "GQA_score.json", "own_pred.txt", "own_score.json", "scores.json")
    ]
    assert json.loads((out / "GQA_score.json").read_text()) == {"acc": 0.5, "num_correct": 1, "num_pred": 2}
    assert json.loads((out / "own_score.json").read_text()) == {"acc": 2 / 3, "num_correct": 2, "num_pred": 3}
    assert (out / "GQA_pred.txt").read_text().splitlines() == ["('yes', '')", "(\"it's\\ntrue\", '')"]
    assert (out / "own_pred.txt").read_text().splitlines() == ["('no', '')"] * 3
    assert json.loads((out / "scores.json").read_text()) == summary
    assert summary["model"] == MODEL
    assert summary["benchmark"] == "MMEB"
    assert (summary["num_rows"], summary["num_items"]) == (5, 5)
    assert summary["datasets"]["GQA"]["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert summary["overall"]["acc"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_each_item_is_encoded_once_over_all_datasets(options, encoder):
    run(encoder, options)
    encoded = [key for call in encoder.calls for key in call]
    assert len(encoded) == len(set(encoded)) == 5


def test_only_the_selected_datasets_are_read(tmp_path: Path, options, encoder):
    (tmp_path / "data" / "own" / "test-00000-of-00001.parquet").write_bytes(b"broken")
    summary = run(encoder, [*options, "--subset_name", "vqa"])
    assert list(summary["datasets"]) == ["GQA"]


def test_a_run_replaces_an_earlier_one_in_the_same_folder(tmp_path: Path, options, encoder):
    run(encoder, options)
    summary = run(encoder, [*options, "--subset_name", "own"])
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == summary
    assert list(summary["datasets"]) == ["own"]


def test_a_run_that_cannot_be_written_leaves_no_earlier_scores_behind(tmp_path: Path, options, encoder):
    run(encoder, options)
    (tmp_path / "out" / "own_pred.txt").unlink()
    (tmp_path / "out" / "own_pred.txt").mkdir()
    assert run_program(lambda: run(encoder, options) and None) == EXIT_BAD_INPUT
    assert not (tmp_path / "out" / "scores.json").exists()
    assert not list((tmp_path / "out").glob(".*"))


def test_a_refused_model_leaves_no_files(tmp_path: Path, options, encoder):
    collapsed = TableEncoder(dict.fromkeys(encoder.vectors, EAST))
    assert run_program(lambda: run(collapsed, options) and None) == EXIT_BAD_INPUT
    assert not (tmp_path / "out").exists()


def change(option: str, value: str) -> Callable[[Path, list[str]], None]:
    def apply(folder: Path, options: list[str]) -> None:
        options += [option, value]

    return apply


def remove_image(folder: Path, options: list[str]) -> None:
    (folder / "images" / "GQA" / "1.png").unlink()


def break_parquet(folder: Path, options: list[str]) -> None:
    (folder / "data" / "own" / "test-00000-of-00001.parquet").write_bytes(b"broken")


def empty_folder(folder: Path, options: list[str]) -> None:
    (folder / "empty").mkdir()
    options += ["--dataset_name", str(folder / "empty")]


def file_as_output(folder: Path, options: list[str]) -> None:
    (folder / "out").write_text("a file")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_image, "GQA/1.png; check --image_dir"),
        (break_parquet, "cannot read it as parquet"),
        (empty_folder, "no dataset with a test-*.parquet file"),
        (file_as_output, "cannot create it"),
        (change("--subset_name", "nonsense"), "--subset_name nonsense"),
        (change("--dataset_split", "dev"), "no dataset with a dev-*.parquet file"),
        (change("--image_dir", "/no/such/folder"), "--image_dir /no/such/folder: no such folder"),
        (change("--pooling", "mean"), "use --pooling eos"),
        (change("--num_crops", "0"), "--num_crops 0: must be 1 or more"),
        (change("--per_device_eval_batch_size", "x"), "invalid int value"),
        (change("--checkpoint_path", "adapter"), "without --lora: add --lora"),
        (change("--lora", "maybe"), "--lora"),
        (change("--subset", "GQA"), "unknown option --subset"),
        (lambda folder, options: options.append("--lora"), "has no adapter_config.json"),
        (lambda folder, options: options.clear(), "the following arguments are required"),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_code_2(tmp_path: Path, options, capfd, monkeypatch, spoil, message):
    (tmp_path / "hand").mkdir()
    monkeypatch.chdir(tmp_path)
    spoil(tmp_path, options)
    assert run_program(lambda: mmeb.main(options)) == EXIT_BAD_INPUT
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, options, capfd, monkeypatch):
    (tmp_path / "hand").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run_program(lambda: mmeb.main(options)) == EXIT_BAD_INPUT
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "hand" in lines[0]
    assert list((tmp_path / "out").iterdir()) == []
