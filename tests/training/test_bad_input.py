"""Bad input: one line that names the file, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from trials.rig import forked
from trials.rig.hand_made_eval import row, write_dataset, write_image
from trials.rig.run_flags import run_flags
from vlm2vec.errors import InputError, run_program
from vlm2vec.export import __main__ as export_program
from vlm2vec.training.checkpoints.writer import find_checkpoint
from vlm2vec.training.evaluation import build_evaluation
from vlm2vec.training.flags.engine_file import read_engine_file
from vlm2vec.training.flags.evaluation import EvaluationArguments
from vlm2vec.training.flags.resolve import evaluation_settings


def test_shards_without_manifest(tmp_path: Path, golden_model_dir: Path) -> None:
    (tmp_path / "shards").mkdir()
    flags = run_flags(golden_model_dir, tmp_path / "shards", tmp_path / "run", "zero2")
    exit_code, output = forked.run_program(
        ["vlm2vec.train", *flags, "--max_steps", "1", "--global_batch_size", "4"], tmp_path
    )
    assert exit_code == 2
    assert "Traceback" not in output
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {tmp_path / 'shards'}: no manifest")
    assert not list(tmp_path.glob("run/checkpoint-*"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("{", "Expecting"),
        ({"zero_optimization": {"stage": 0}}, "must be 1, 2 or 3"),
        ({"zero_optimization": {"stage": 2}, "train_batch_size": 8}, "remove 'train_batch_size'"),
        ({"zero_optimization": {"stage": 2}, "optimizer": {}}, "remove 'optimizer'"),
    ],
)
def test_engine_configurations(tmp_path: Path, content: object, reason: str) -> None:
    path = tmp_path / "ds.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=reason) as refused:
        read_engine_file(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("case", ["absent", "empty folder", "latest names nothing", "foreign record", "torn engine"])
def test_checkpoints_that_are_none(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    if case != "absent":
        folder.mkdir()
    if case == "latest names nothing":
        (folder / "latest").write_text("checkpoint-7\n")
    if case == "foreign record":
        (folder / "run.json").write_text('{"schema_version": 1, "hello": 2}')
    if case == "torn engine":
        (folder / "encoder").mkdir()
        (folder / "engine").mkdir()
        record = {"step": 1, "num_ranks": 1, "zero_stage": 2, "versions": {}, "data": {}}
        arguments = {"lora": False, "bf16": False, "model_name": "absent"}
        (folder / "run.json").write_text(json.dumps({"schema_version": 1, "arguments": arguments, **record}))
    monkeypatch.setattr(sys, "argv", ["export", str(folder), str(tmp_path / "out")])
    assert run_program(export_program.main) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(folder) in error
    assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"run"}


def test_the_latest_pointer_stays_inside_the_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "run.json").write_text("{}")
    (tmp_path / "run" / "latest").write_text("../elsewhere\n")
    with pytest.raises(InputError, match="not a checkpoint here"):
        find_checkpoint(tmp_path / "run")


def test_linked_evaluation_images_are_refused_with_the_flag_of_training(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "disk2/1.png")
    (tmp_path / "images/GQA").symlink_to(tmp_path / "disk2")
    write_dataset(tmp_path / "data", "GQA", [row("<|image_1|> what?", ["x", "y"], "GQA/1.png")])
    place = {"eval_dataset_name": str(tmp_path / "data"), "eval_image_dir": str(tmp_path / "images")}
    settings = evaluation_settings(EvaluationArguments(1, place["eval_dataset_name"], place["eval_image_dir"]))
    with pytest.raises(InputError, match=r"GQA/1\.png: a link that leads out .*pass --eval_allow_links"):
        build_evaluation(settings, tmp_path, Mock(), Mock(), 0, torch.device("cpu"))
