from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import locking
from tests.rig.convert_program import run_main
from trials.rig.hand_made_train import TABLE, converted, image_bytes, make_dataset, row, tree, write_rows
from vlm2vec.shards import ShardSet


def test_workers_change_nothing(dataset: Path, tmp_path: Path) -> None:
    write_rows(dataset, [row(number) for number in range(60)])
    for workers in (0, 1, 3):
        converted(dataset, tmp_path / str(workers), num_workers=workers, rows_per_shard=4)
    assert tree(tmp_path / "0") == tree(tmp_path / "1") == tree(tmp_path / "3")
    assert len(list((tmp_path / "0" / "A").glob("*.tar"))) == 15


def test_a_second_call_leaves_a_complete_folder_as_it_is(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, dataset, tmp_path / "o") == 0
    before = tree(tmp_path / "o")
    written = (tmp_path / "o/A/A-00000.tar").stat().st_mtime_ns
    assert run_main(monkeypatch, dataset, tmp_path / "o") == 0
    assert tree(tmp_path / "o") == before
    assert (tmp_path / "o/A/A-00000.tar").stat().st_mtime_ns == written
    assert "complete, fingerprint" in capsys.readouterr().out


# What a kill, a full disk or a power cut can leave behind.
REMAINS: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda root: (root / "manifest.json").unlink(),
    "no report": lambda root: [(root / name).unlink() for name in ("manifest.json", "report.json")],
    "no sidecar": lambda root: [(root / name).unlink() for name in ("manifest.json", "A/A-00001.json")],
    "no index": lambda root: (root / "A/A-00001.parquet").unlink(),
    "tar only": lambda root: [(root / f"A/A-00001.{kind}").unlink() for kind in ("json", "parquet")],
    "short tar": lambda root: os.truncate(root / "A/A-00001.tar", 4096),
    "empty sidecar": lambda root: os.truncate(root / "A/A-00001.json", 0),
    "damaged index": lambda root: os.truncate(root / "A/A-00001.parquet", 99),
    "another shard's sidecar": lambda root: (root / "A/A-00001.json").write_bytes(
        (root / "A/A-00000.json").read_bytes()
    ),
    "temporary files": lambda root: [
        (root / name).write_text("x") for name in (".tmp-7-report.json", "A/.tmp-7-A-00001.tar")
    ],
}


@pytest.mark.parametrize("remains", REMAINS)
def test_whatever_is_left_is_completed_to_the_same_bytes(remains: str, dataset: Path, tmp_path: Path) -> None:
    converted(dataset, tmp_path / "o", rows_per_shard=4)
    before = tree(tmp_path / "o")
    REMAINS[remains](tmp_path / "o")
    untouched = (tmp_path / "o/A/A-00002.tar").stat().st_mtime_ns
    assert tree(tmp_path / "o") != before
    converted(dataset, tmp_path / "o", rows_per_shard=4)
    assert tree(tmp_path / "o") == before
    assert (tmp_path / "o/A/A-00002.tar").stat().st_mtime_ns == untouched


def test_a_kill_before_the_plan_leaves_an_empty_folder(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o/.tmp-7-plan.json").write_text("{")
    converted(dataset, tmp_path / "o")
    assert not list((tmp_path / "o").glob(".tmp*"))


def test_a_changed_image_is_taken_up_and_not_mixed(dataset: Path, tmp_path: Path) -> None:
    converted(dataset, tmp_path / "o", rows_per_shard=4)
    path = dataset / "images/A/Train/0.png"
    path.write_bytes(image_bytes(77))
    os.utime(path, (0, 0))  # an unpacked file claims to be old
    converted(dataset, tmp_path / "o", rows_per_shard=4)
    shards = ShardSet.open(tmp_path / "o")
    assert [shards.read("A", n).query.image for n in (0, 3, 6, 9)] == [image_bytes(77)] * 4
    converted(dataset, tmp_path / "afresh", rows_per_shard=4)
    assert tree(tmp_path / "o") == tree(tmp_path / "afresh")


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (["--rows_per_shard", "5"], "--rows_per_shard 4 (now 5)"),
        (["--rows_per_shard", "4", "--num_sample_per_subset", "9"], "--num_sample_per_subset None (now 9)"),
        (["--rows_per_shard", "4", "--check_images", "header"], "--check_images decode (now header)"),
        (
            ["--rows_per_shard", "4", "--split_name", "other"],
            "--split_name original (now other), a different A/other-0",
        ),
        (["--rows_per_shard", "4", "--subset_name", "A", "B"], "--subset_name A (now A B)"),
    ],
)
def test_other_options_are_refused_and_nothing_is_touched(
    options: list[str],
    change: str,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("A/other-00000-of-00001.parquet", "B/original-00000-of-00001.parquet"):
        write_rows(dataset, [row(0)], name)
    converted(dataset, tmp_path / "o", rows_per_shard=4)
    before = tree(tmp_path / "o")
    assert run_main(monkeypatch, dataset, tmp_path / "o", *options) == 2
    error = capsys.readouterr().err
    assert f"was started with {change}" in error
    assert error.count("\n") == 1
    assert tree(tmp_path / "o") == before


def test_another_source_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converted(dataset, tmp_path / "o")
    before = tree(tmp_path / "o")
    write_rows(dataset, [row(number, pos_text="changed") for number in range(10)])
    assert run_main(monkeypatch, dataset, tmp_path / "o") == 2
    assert f"was started with a different {TABLE}" in capsys.readouterr().err
    assert tree(tmp_path / "o") == before


def test_a_damaged_plan_and_a_foreign_folder_are_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converted(dataset, tmp_path / "o")
    (tmp_path / "o/plan.json").write_text("[]")
    assert run_main(monkeypatch, dataset, tmp_path / "o") == 2
    assert "plan.json: damaged" in capsys.readouterr().err
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / ".tmp-thesis.odt").write_text("mine")
    assert run_main(monkeypatch, dataset, foreign) == 2
    assert "not empty, and not a folder of this program" in capsys.readouterr().err
    assert tree(foreign) == {".tmp-thesis.odt": b"mine"}


def test_two_conversions_do_not_share_a_folder(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locking, "_LOCK_SECONDS", 0.1)
    (tmp_path / "o").mkdir()
    holder = os.open(tmp_path / "o", os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert run_main(monkeypatch, dataset, tmp_path / "o") == 2
    finally:
        os.close(holder)
    assert "another conversion is writing here" in capsys.readouterr().err
    assert list((tmp_path / "o").iterdir()) == []


def test_a_full_disk_is_one_line_and_the_same_command_continues(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "A-00000.tar")

    with monkeypatch.context() as patch:
        patch.setattr("vlm2vec.shards.writer.publish", full)
        assert run_main(patch, dataset, tmp_path / "o") == 2
    assert "A-00000.tar: No space left on device; run the same command again to continue" in capsys.readouterr().err
    assert run_main(monkeypatch, dataset, tmp_path / "o") == 0
    converted(make_dataset(tmp_path / "again"), tmp_path / "p")
    assert tree(tmp_path / "o") == tree(tmp_path / "p")
