from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.conversion import Tolerance, convert
from data_prep.download import missing_images
from data_prep.source import SourceData
from tests.rig.convert_program import run_main
from trials.rig.hand_made_train import TABLE, converted, image_bytes, row, tree, write_rows
from vlm2vec.errors import EXIT_BAD_INPUT, InputError


@pytest.fixture
def linked(dataset: Path, tmp_path: Path) -> Path:
    """A dataset whose images are on another disk."""
    (dataset / "images/A").rename(tmp_path / "disk2")
    (dataset / "images/A").symlink_to(tmp_path / "disk2")
    return dataset


def test_a_linked_folder_is_refused_before_the_table_is_read(
    linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (linked / TABLE).write_bytes(b"never read")
    assert run_main(monkeypatch, linked, tmp_path / "o", "--max_missing", "100") == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert f"{linked}/images/A: a link that leads out of {linked}; pass --allow_links" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()
    with pytest.raises(InputError, match="pass --allow_links"):
        missing_images(linked, linked, ["A"], "original")


@pytest.mark.parametrize("place", ["images", "images/A", "images/A/Train"])
def test_allowed_links_give_the_same_shards(place: str, dataset: Path, tmp_path: Path) -> None:
    converted(dataset, tmp_path / "plain")
    (dataset / place).rename(tmp_path / "disk2")
    (dataset / place).symlink_to(tmp_path / "disk2")
    with pytest.raises(InputError, match="pass --allow_links"):
        convert(SourceData(dataset, dataset, ["A"]), tmp_path / "refused")
    converted(dataset, tmp_path / "linked", allow_links=True, num_workers=2)
    assert tree(tmp_path / "linked") == tree(tmp_path / "plain")
    assert missing_images(dataset, dataset, ["A"], "original", allow_links=True) == {"A": []}
    (tmp_path / "disk2").rename(dataset / "disk1")  # inside the dataset, a link is nobody's business
    (dataset / place).unlink()
    (dataset / place).symlink_to(dataset / "disk1")
    converted(dataset, tmp_path / "inside")
    assert tree(tmp_path / "inside") == tree(tmp_path / "plain")


def test_a_link_to_a_single_image_is_reported_with_the_flag(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.png").write_bytes(image_bytes(50))
    image = dataset / "images/A/Train/1.png"
    image.unlink()
    image.symlink_to(tmp_path / "elsewhere.png")
    report = convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o").report.subsets["A"]
    assert report.unreadable_images == 1
    assert "images/A/Train/1.png: a link that leads out" in report.first_unreadable[0]
    assert "--allow_links" in report.first_unreadable[0]
    converted(dataset, tmp_path / "o", allow_links=True)  # the same folder is completed


def test_images_that_are_all_links_out_end_the_conversion_before_it_writes(dataset: Path, tmp_path: Path) -> None:
    for number in range(3):
        image = dataset / f"images/A/Train/{number}.png"
        image.rename(tmp_path / image.name)
        image.symlink_to(tmp_path / image.name)
    with pytest.raises(InputError, match=r"none of its first images .* can be used: .*leads out.*--allow_links"):
        convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o", tolerance=Tolerance(max_missing=100))
    assert not (tmp_path / "o").exists()
    converted(dataset, tmp_path / "o", allow_links=True)


def test_nothing_left_is_never_complete(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for image in (dataset / "images/A/Train").iterdir():
        image.write_bytes(b"")
    assert run_main(monkeypatch, dataset, tmp_path / "o", "--max_missing", "100") == EXIT_BAD_INPUT
    assert not (tmp_path / "o/manifest.json").exists()
    assert "/A: no usable row" in capsys.readouterr().err
    (dataset / "B").mkdir()
    write_rows(dataset, [row(0, qry_image_path="", qry="text")], "B/original-00000-of-00001.parquet")
    with pytest.raises(InputError, match="/A: no usable row"):
        convert(SourceData(dataset, dataset, ["A", "B"]), tmp_path / "p", tolerance=Tolerance(max_missing=100))
