"""report.html: its content, and that texts from data are escaped."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from eval import report
from eval.invocation import CALLS_FILE, Started
from eval.table import step_of
from tests.eval.test_report import MODEL, scores_of
from trials.rig.hand_made_eval import Row, read, row, write_dataset, write_image
from vlm2vec import __version__
from vlm2vec.errors import EXIT_BAD_INPUT, run_program
from vlm2vec.evaluation.scoring import predictions_table, score_rows
from vlm2vec.mmeb import MINI_MMEB, MMEB, PUBLISHED_SCORES, Benchmark

NASTY = "<script>alert('x')</script> $\\frac{ & --> \"_"


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run's folder: scores as given, and for each dataset two rows, the first lost, with images."""

    def write(name: str, accs: dict[str, float], benchmark: Benchmark | None = MMEB) -> Path:
        folder = tmp_path / name
        write_image(tmp_path / "images/red.png", (255, 0, 0), (300, 200))
        write_image(tmp_path / "images/blue.png", (0, 0, 255))
        summary = {**scores_of(accs, benchmark), "image_dir": str(tmp_path / "images")}
        folder.mkdir()
        (folder / "scores.json").write_text(json.dumps(summary))
        rows = [
            row(f"which? {NASTY}", ["truth", "chosen"], images=["red.png", "blue.png"]),
            row("won", ["truth", "other"], images=["gone.png", "gone.png"]),
        ]
        tables = [predictions_of(dataset, rows, [True, False], tmp_path / "data") for dataset in accs]
        pq.write_table(pa.concat_tables(tables), folder / "predictions.parquet")
        return folder

    return write


def predictions_of(dataset: str, rows: list[Row], is_lost: Sequence[bool], folder: Path) -> pa.Table:
    """Ranked rows with two candidates each, of which those that are lost chose the second one."""
    (read_rows,), items = read(write_dataset(folder, dataset, rows))
    vectors = np.asarray([[1, 0]] * len(items), dtype=np.float32)
    for number, lost in enumerate(is_lost):
        vectors[read_rows.of_row(number)[0 if lost else 1]] = [0, 1]
    scores = score_rows(vectors, np.arange(len(items), dtype=np.int32), read_rows)
    return predictions_table(read_rows, scores, items)


def test_misses_show_different_images_while_there_are_some(write_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_run("run", {"GQA": 0.5})
    for name in ("green", "grey"):
        write_image(tmp_path / f"images/{name}.png")
    rows = [
        row(f"<|image_1|> question {number}", [f"truth {number}", f"chosen {number}"], image)
        for number, image in enumerate(("red.png", "red.png", "red.png", "green.png", "grey.png"))
    ]
    table = predictions_of("GQA", rows, [True] * len(rows), tmp_path / "many")
    pq.write_table(table, folder / "predictions.parquet")
    report.main([str(folder)])
    text = Page((folder / "report.html").read_text()).text
    assert [number for number in range(5) if f"question {number}" in text] == [0, 3, 4]
    assert "<|image_1|>" not in text
    report.main([str(folder), "--misses", "4"])
    text = Page((folder / "report.html").read_text()).text
    assert [number for number in range(5) if f"question {number}" in text] == [0, 1, 3, 4]


def test_the_reports_lie_in_the_last_run(write_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write_run("one", {"GQA": 0.5}), write_run("two", {"GQA": 0.6})
    report.main([str(one), str(two), "--names", "untrained", "trained"])
    assert not (one / "report.md").exists()
    assert "| dataset |  | chance | untrained | trained |" in (two / "report.md").read_text()
    assert "trained" in (two / "report.html").read_text()
    assert "GQA" in capsys.readouterr().out


class Page(HTMLParser):
    """Elements of a page by tag: their attributes; and all its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: dict[str, list[dict[str, str | None]]] = {}
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.setdefault(tag, []).append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_everything_and_needs_nothing_else(write_run: Callable[..., Path], tmp_path: Path) -> None:
    accs = {dataset.name: 0.4 for dataset in MMEB.eval_datasets}
    folders = [write_run(f"checkpoint-{step}", accs) for step in (100, 200)]
    report.main([*map(str, folders), "--output_dir", str(tmp_path / "report")])
    page = Page((tmp_path / "report/report.html").read_text())
    # A radar and the curve over steps; no script, style sheet or image from elsewhere.
    assert len(page.elements["svg"]) == 2
    assert "training step" in (tmp_path / "report/report.html").read_text()
    assert not {"script", "link", "iframe", "object"} & set(page.elements)
    # Light, dark, or as the system: all colours of the figures have both.
    assert [element["id"] for element in page.elements["input"]] == ["auto", "light", "dark"]
    figures = (tmp_path / "report/report.html").read_text().split("<svg")[1:]
    colours = [set(re.findall(r"(?:fill|stroke): (\S+?)[;\"(]", figure.split("</svg>")[0])) for figure in figures]
    assert colours == [{"none", "light-dark"}] * 2
    images = [element["src"] or "" for element in page.elements["img"]]
    assert len(images) == 2 * 36
    assert all(source.startswith("data:image/jpeg;base64,") for source in images)
    assert all(name in page.text for name in [*accs, *PUBLISHED_SCORES])
    assert "the truth ranks 2 of 2" in page.text
    thumbnail = Image.open(io.BytesIO(base64.b64decode(images[1].split(",")[1])))
    assert thumbnail.size == (200, 133)
    assert np.asarray(thumbnail)[50, 50, 0] > 250


def test_the_page_tells_how_runs_were_scored_and_what_changed(write_run: Callable[..., Path], tmp_path: Path) -> None:
    one, two = write_run("one", {"GQA": 0.5, "CIRR": 0.5}), write_run("two", {"GQA": 0.75, "CIRR": 0.25})
    Started.now("eval.mmeb", ["--model_name", NASTY]).record(two, torch.device("cpu"), 7, ["GQA", "CIRR"])
    report.main([str(one), str(two)])
    page = Page((two / "report.html").read_text())
    assert "+25.0" in page.text
    assert "-25.0" in page.text
    kinds = [element.get("class") for element in page.elements["td"]]
    assert kinds.count("up") == kinds.count("down")
    assert kinds.count("best") > 2
    assert "No scored_by.json: date, command and commit are not known." in page.text
    assert f"by vlm2vec {__version__}" in page.text
    assert f"python -m eval.mmeb --model_name '{NASTY}'".replace("'x'", "'\"'\"'x'\"'\"'") in page.text
    markdown = (two / "report.md").read_text()
    assert "7 items encoded: python -m eval.mmeb --model_name" in markdown
    (two / CALLS_FILE).write_text("{}")
    assert run_program(lambda: report.main([str(one), str(two)])) == EXIT_BAD_INPUT


def test_whatever_data_says_stays_text(write_run: Callable[..., Path], tmp_path: Path) -> None:
    names = ("Digits-10", "PairVQA", "Recolor")
    folder = write_run("nasty", dict.fromkeys(names, 0.3), MINI_MMEB)
    summary = json.loads((folder / "scores.json").read_text())
    summary["model"]["model_name"] = NASTY
    summary["warnings"] = [NASTY]
    (folder / "scores.json").write_text(json.dumps(summary))
    report.main([str(folder), str(folder), "--names", NASTY, "_b", "--steps", "1", "2"])
    page = Page((folder / "report.html").read_text())
    assert "script" not in page.elements
    assert page.text.count(f"which? {NASTY}") == len(names)
    assert page.text.count(f": {NASTY}.") == 1


def test_images_that_are_gone_are_left_out_and_counted(write_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_run("run", {"GQA": 0.5})
    (tmp_path / "images/red.png").unlink()
    report.main([str(folder)])
    page = Page((folder / "report.html").read_text())
    assert len(page.elements["img"]) == 1
    assert "1 image could not be read" in page.text
    report.main([str(folder), "--image_dir", str(tmp_path / "none")])
    assert "img" not in Page((folder / "report.html").read_text()).elements


def test_steps_come_from_names_or_the_flag(write_run: Callable[..., Path]) -> None:
    summary = scores_of({"GQA": 0.5})
    assert step_of("checkpoint-400", Path("x"), summary) == 400
    assert step_of("a", Path("runs/step_12"), summary) == 12
    assert step_of("a", Path("b"), {"model": {**MODEL, "checkpoint_path": "run/checkpoint-7"}}) == 7
    assert step_of("a", Path("b"), summary) is None
    folder = write_run("run", {"GQA": 0.5})
    assert run_program(lambda: report.main([str(folder), "--steps", "1", "2"])) == EXIT_BAD_INPUT
