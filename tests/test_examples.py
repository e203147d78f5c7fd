"""The minimal example does what the documentation promises."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.rig import golden, qwen_golden
from vlm2vec.images.decode import open_image
from vlm2vec.shards import ShardSet

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(monkeypatch: pytest.MonkeyPatch, *arguments: str, name: str = "encode.py") -> int:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return int(end.value.code or 0)


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


def test_another_family_and_its_limits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = ("--model_name", str(qwen_golden.model_folder("qwen3_vl")), "--prompt_format", "chat")
    image = ("--image", str(golden.ROOT / "qwen3_vl/images/wide.png"))

    def printed(*flags: str) -> str:
        assert run_example(monkeypatch, *model, *image, *flags) == 0
        return capsys.readouterr().out

    plain = printed()
    assert len({plain, printed("--max_pixels", "8192"), printed("--min_pixels", "1000000")}) == 3
    for flags, said in (
        (["--num_crops", "4"], "num_crops: a qwen3_vl has no such limit on its images; use min_pixels, max_pixels"),
        (["--max_pixels", "0"], "--max_pixels 0: must be 1 or more"),
        (["--min_pixels", "9", "--max_pixels", "8"], "--min_pixels 9: must not be more than --max_pixels 8"),
    ):
        assert run_example(monkeypatch, *model, *flags) == 2
        assert said in capsys.readouterr().err


def test_bad_input_is_one_line(
    golden_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_example(monkeypatch, "--model_name", str(golden_model_dir), "--image", "/nowhere/x.png") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: item 0: /nowhere/x.png: cannot read")


def test_a_stream_holds_every_pair_of_a_subset_once(
    mini_shards_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = ShardSet.open(str(mini_shards_dir))
    samples = [shards.read("Pairs_t2i", position) for position in range(shards.num_samples["Pairs_t2i"])]
    flags = ["--dataset_name", str(mini_shards_dir), "--subset_name", "Pairs_t2i", "--pairs", "1000"]
    flags += ["--num_workers", "1000"]  # more than there are tars
    assert run_example(monkeypatch, *flags, name="stream.py") == 0
    output = capsys.readouterr().out
    assert sorted(output.splitlines()[::3]) == sorted(sample.key for sample in samples)
    for sample in samples:
        assert sample.positive.image is not None
        image = open_image(sample.positive.image, sample.key)
        assert f"{sample.key}\n  query: no image, {sample.query.text!r}\n" in output
        assert f"  target: {image.width} x {image.height}, {sample.positive.text!r}\n" in output


def test_a_stream_of_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_example(monkeypatch, "--dataset_name", str(tmp_path), name="stream.py") == 2
    assert "no tars of all there" in capsys.readouterr().err
