"""Errors of an evaluation name the flag of the program that is running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eval import mmeb
from eval.mmeb_flags import parse_arguments
from trials.rig.hand_made_eval import row, write_dataset
from vlm2vec.errors import InputError
from vlm2vec.training.evaluation import build_evaluation
from vlm2vec.training.flags.evaluation import EvaluationArguments
from vlm2vec.training.flags.resolve import evaluation_settings

CASES = [
    ({"data": "no/such/folder"}, "dataset_name", "no/such/folder: no such folder"),
    ({"subset": "nonsense"}, "subset", "nonsense: the folder has no such dataset or group"),
    ({}, "image_dir", "images: .* row 0: "),
]


@pytest.mark.parametrize(("wrong", "flag", "message"), CASES)
def test_both_programs_name_their_flag(
    tmp_path: Path, mini_model_dir: Path, wrong: dict[str, str], flag: str, message: str
) -> None:
    write_dataset(tmp_path / "data", "own", [row("<|image_1|> q", ["a", "b"], "gone.png")])
    (tmp_path / "images").mkdir()
    data, images = wrong.get("data", str(tmp_path / "data")), str(tmp_path / "images")
    subset = wrong.get("subset", "all")
    words = ["--model_name", str(mini_model_dir), "--dataset_name", data, "--image_dir", images]
    words += ["--subset_name", subset, "--encode_output_path", str(tmp_path / "out")]
    scoring, training = ("--subset_name", "--eval_subsets") if flag == "subset" else (f"--{flag}", f"--eval_{flag}")
    with pytest.raises(InputError, match=rf"^{scoring} .*{message}"):
        mmeb.prepare(*parse_arguments(words), torch.device("cpu"))
    settings = evaluation_settings(EvaluationArguments(5, data, images, eval_subsets=[subset]))
    unused: Any = None
    with pytest.raises(InputError, match=rf"^{training} .*{message}"):
        build_evaluation(settings, tmp_path, unused, unused, 0, torch.device("cpu"))
