"""The minimum demonstration does what a user is promised."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests import golden

EXAMPLE = Path(__file__).parents[1] / "examples" / "encode.py"


def run_example(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return end.value.code


def test_both_directions(
    golden_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(golden.PHI3V / "images/square.png")
    assert run_example(monkeypatch, "--model_name", str(golden_model_dir), "--num_crops", "1", "--image", image) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "image -> text"
    assert lines[3] == "text -> image"
    scores = [float(line.split()[0]) for line in lines if line.startswith("  ")]
    assert len(scores) == 4
    assert all(-1 <= score <= 1 for score in scores)


def test_bad_input_is_one_line(
    golden_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_example(monkeypatch, "--model_name", str(golden_model_dir), "--image", "/nowhere/x.png") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: item 0: /nowhere/x.png: cannot read")
