from __future__ import annotations

import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data_prep import inspect as program
from data_prep.statistics import Cosines, Histogram
from tests.rig.made_up_sidecar import write_sidecar
from trials.rig.hand_made_train import converted, row, write_rows
from trials.rig.several import expected_items, several_rows, write_several
from vlm2vec.errors import run_program
from vlm2vec.mined.format import Mined
from vlm2vec.shards import ShardSet

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)"> \u202e & "quotes" \'single\''


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["inspect", *map(str, arguments)])
    return run_program(program.main)


class Elements(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_shows_every_subset(
    mini_shards_dir: Path,
    mini_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "page.html"
    assert run(monkeypatch, mini_shards_dir, "--html", path, "--tokenizer", mini_model_dir, "--examples", 2) == 0
    page = Elements(path.read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.elements]
    assert "script" not in tags
    assert "link" not in tags
    sources = [attributes["src"] or "" for tag, attributes in page.elements if tag == "img"]
    assert all(re.match(r"data:image/(png|jpeg);base64,", source) for source in sources)
    assert len(sources) > 20
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == [folder.name for folder in sorted(mini_shards_dir.iterdir()) if folder.is_dir()]
    assert page.text.count("query: text, tokens") == len(sections)
    table = capsys.readouterr().out
    assert all(name in table for name in sections if name)
    assert "Text lengths in tokens" in table


def test_what_data_say_stays_text(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        row(0, qry=f"<|image_1|>{HOSTILE}", pos_text=""),
        row(1, pos_text=HOSTILE, neg_text=HOSTILE, neg_image_path=""),
    ]
    rows[0] |= {"pos_image_path": "images/A/Train/1.png", "neg_text": "", "neg_image_path": ""}
    write_rows(dataset, rows)
    converted(dataset, tmp_path / "o")
    assert run(monkeypatch, tmp_path / "o", "--html", tmp_path / "page.html") == 0
    page = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "script" not in [tag for tag, _ in page.elements]
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count(HOSTILE.replace("\u202e", "\\u202e")) == 3
    assert "\u202e" not in page.text


def test_a_pair_that_cannot_be_read_is_named_and_the_others_are_shown(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted(dataset, tmp_path / "o")
    tar = tmp_path / "o/A/A-00000.tar"
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    assert run(monkeypatch, tmp_path / "o", "--html", tmp_path / "page.html") == 0
    page = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "sample A/00000000 is damaged" in page.text
    assert "answer 5" in page.text


def test_bad_input_is_one_line(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converted(dataset, tmp_path / "o")
    for arguments, message in (
        ((dataset,), "no manifest"),
        ((tmp_path / "o", "--tokenizer", dataset), "tokenizer.json: cannot read the tokenizer"),
        ((tmp_path / "o", "--html", tmp_path / "none" / "page.html"), "page.html: cannot write the page"),
        ((tmp_path / "o", "--examples", "-1"), "must be at least 0"),
    ):
        assert run(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_several_images_and_negatives_are_all_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_several(tmp_path / "data", several_rows())
    converted(tmp_path / "data", tmp_path / "o")
    assert run(monkeypatch, tmp_path / "o", "--html", tmp_path / "page.html", "--show", "--examples", 10) == 0
    page = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
    pairs = [expected_items(each) for each in several_rows()]
    images = sum(len(item.images) for query, target, negatives in pairs for item in (query, target, *negatives))
    assert [tag for tag, _ in page.elements].count("img") == images
    assert page.text.count("hard negative 3") == 2
    assert capsys.readouterr().out.count("  hard negative 3 ") == 2


def test_a_single_value_is_said_and_not_drawn(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(dataset, [row(number, qry="<|image_1|> the same", pos_text="a" * (number + 1)) for number in range(3)])
    converted(dataset, tmp_path / "o")
    assert run(monkeypatch, tmp_path / "o", "--html", tmp_path / "page.html") == 0
    page = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "query: text, characters: 20 in all 3" in page.text
    drawn = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert drawn == ["target: text, characters"]
    assert "all 20 " in capsys.readouterr().out


@pytest.fixture
def mined_shards(dataset: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Shards of 10 rows, and a sidecar of them."""
    write_rows(
        dataset, [row(number, qry=f"<|image_1|> q{number}", pos_text=f"<target {number}>") for number in range(10)]
    )
    converted(dataset, tmp_path / "o")
    return tmp_path / "o", write_sidecar(tmp_path / "mined", ShardSet.open(tmp_path / "o"))


def test_mined_negatives_are_shown_with_ranks_and_scores(
    mined_shards: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shards, sidecar = mined_shards
    arguments = (shards, "--mined", sidecar, "--show", "--examples", 10, "--html", tmp_path / "page.html")
    assert run(monkeypatch, *arguments) == 0
    page = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
    shown = capsys.readouterr().out
    mined = Mined.read(sidecar).subset("A")
    for position in range(10):
        positive = mined.positive_score[position]
        assert f"cosine {positive:.3f}" in shown
        first = mined.negatives.offsets[position]
        for place, negative in enumerate(mined.negatives[position].tolist()):
            score = mined.negative_scores[first + place]
            line = (
                f'  mined {place + 1}         cosine {score:.3f}, margin {positive - score:.3f}: "<target {negative}>"'
            )
            assert line in shown
            assert f"mined {place + 1} {score:.3f}, margin {positive - score:.3f}" in page.text
    assert "2 clusters, each of 4 rows, 2 rows left over" in page.text
    assert "2 clusters, each of 4 rows, 2 rows left over" in " ".join(shown.split())
    counts = np.diff(mined.negatives.offsets)
    assert f"{(counts == 0).sum()} rows without one" in page.text.replace("1 row without", "1 rows without")
    drawn = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert "margin: target above hardest negative" in drawn
    assert "cosine of query and target" in drawn


def test_only_some_subsets_need_to_be_mined(
    mini_shards_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sidecar = write_sidecar(tmp_path / "mined", ShardSet.open(mini_shards_dir, ["Photos"]))
    assert run(monkeypatch, mini_shards_dir, "--mined", sidecar) == 0
    assert capsys.readouterr().out.count("not mined") == len(ShardSet.open(mini_shards_dir).subsets) - 1


def test_mined_negatives_of_another_data_set_or_damaged_ones_are_refused(
    mined_shards: tuple[Path, Path],
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shards, sidecar = mined_shards
    write_rows(dataset, [row(0), row(1)])
    converted(dataset, tmp_path / "p")
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    shutil.copytree(sidecar, damaged)
    (damaged / "A.parquet").write_bytes((damaged / "A.parquet").read_bytes()[:-1])
    for arguments, message in (
        ((tmp_path / "p", "--mined", sidecar), "mined.json: mined from different shards (fingerprint "),
        (
            (shards, "--mined", tmp_path / "empty"),
            "no mined.json; expected the output folder of python -m data_prep.mine",
        ),
        ((shards, "--mined", damaged), "A.parquet: not the file that mined.json names"),
        ((shards, "--examples", 3), "--examples 3: no effect without --html or --show"),
    ):
        assert run(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("values", "starts", "counts"),
    [
        ([], [0], []),
        ([7], [7, 8], [1]),
        ([3, 4, 4, 6], [3, 4, 5, 6, 7], [1, 2, 0, 1]),
        ([31, 36, 50], list(range(30, 53, 2)), [1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]),
        ([1, 2, 3, 100], [1, 2, 4, 8, 16, 32, 64, 128], [1, 2, 0, 0, 0, 0, 1]),
        ([640, 640, 1000, 3000], [500, 1000, 1500, 2000, 2500, 3000, 3500], [2, 1, 0, 0, 0, 1]),
    ],
)
def test_histograms(values: list[int], starts: list[int], counts: list[int]) -> None:
    histogram = Histogram.of(np.array(values, np.int64))
    assert list(histogram.starts) == starts
    assert list(histogram.counts) == counts


def test_bins_are_labelled_by_their_values() -> None:
    histogram = Histogram.of(np.array([1, 2, 3, 100], np.int64))
    assert [histogram.label(number).replace("\N{EN DASH}", "-") for number in (0, 1, 6)] == ["1", "2-3", "64-127"]


@pytest.mark.parametrize(
    ("values", "starts", "counts"),
    [
        ([], [0], []),
        ([0.5], [0.5, 0.51], [1]),
        ([0.3, 0.3, 0.35], [0.3, 0.31, 0.32, 0.33, 0.34, 0.35, 0.36], [2, 0, 0, 0, 0, 1]),
        ([-1.0, 1.0], [-1, -0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2], [1, *[0] * 9, 1]),
        ([-2.0, 2.0], [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5], [1, *[0] * 7, 1]),
    ],
)
def test_cosines(values: list[float], starts: list[float], counts: list[int]) -> None:
    cosines = Cosines.of(np.array(values, np.float32))
    assert list(cosines.starts) == pytest.approx(starts)
    assert list(cosines.counts) == counts
