"""Qwen models scored by eval.mmeb: published folders, and with an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.mini_mmeb import EVAL_FOLDER
from eval import mmeb
from tests.rig.golden import ROOT
from tests.rig.qwen_golden import model_folder
from tests.rig.qwen_models import MODELS, copied
from vlm2vec.errors import InputError

pytestmark = pytest.mark.numeric


def score(data: Path, model: Path, output: Path, *flags: str) -> dict[str, Any]:
    mmeb.main(
        [
            *("--model_name", str(model), "--dataset_name", str(data), "--image_dir", str(data / "images")),
            *(
                "--subset_name",
                "ColorVQA",
                "--encode_output_path",
                str(output),
                "--dataloader_num_workers",
                "0",
                *flags,
            ),
        ]
    )
    scores: dict[str, Any] = json.loads((output / "scores.json").read_text())
    return scores


@pytest.mark.parametrize("family", MODELS)
def test_a_published_folder(
    family: str, mini_mmeb_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name tells its prompts, which are said; small batches and large ones give the same ranking."""
    data = mini_mmeb_dir / EVAL_FOLDER
    model = copied(family, tmp_path / "Qwen3-VL-2B-Instruct")
    small = score(data, model, tmp_path / "small", "--per_device_eval_batch_size", "3")
    assert f"prompt format chat: recognized by the files or name of {model}, which" in capsys.readouterr().out
    packed = score(data, model, tmp_path / "packed")
    assert small["datasets"] == packed["datasets"]
    assert packed["model"]["prompt_format"]["name"] == "chat"


def test_what_a_model_gets(mini_mmeb_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, folder = mini_mmeb_dir / EVAL_FOLDER, model_folder("qwen2_vl")
    with pytest.raises(InputError, match=r"nothing tells which prompts .*\(--prompt_format\), one of vlm2vec, "):
        score(data, folder, tmp_path / "unknown")
    with pytest.raises(InputError, match="num_crops: a qwen2_vl has no such limit"):
        score(data, folder, tmp_path / "unknown", "--num_crops", "4")
    flags = ("--lora", "--checkpoint_path", str(ROOT / "qwen2_vl" / "lora"), "--max_pixels", "4000")
    adapted = score(data, folder, tmp_path / "adapted", *flags)
    assert "prompt format vlm2vec: recognized by" in capsys.readouterr().out
    assert (adapted["model"]["prompt_format"]["name"], adapted["model"]["max_pixels"]) == ("vlm2vec", 4000)
    named = score(data, folder, tmp_path / "named", "--prompt_format", "vlm2vec", "--max_pixels", "4000")
    assert "prompt format" not in capsys.readouterr().out
    assert named["model"]["fingerprint"] != adapted["model"]["fingerprint"]
