from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.conversion import Tolerance, convert
from data_prep.conversion_plan import DEFAULT_OPTIONS
from data_prep.source import SourceData
from tests.rig.convert_program import run_main
from trials.rig.hand_made_train import TABLE, converted, image_bytes, row, tree, write_rows
from trials.rig.patience import HANG_SECONDS
from vlm2vec.errors import InputError
from vlm2vec.shards import ShardSet

IMAGES = "images/A/Train"


def write_half_a_photograph(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")
    os.truncate(path, path.stat().st_size // 2)


def rewrite(number: int, **changes: str) -> Callable[[Path], None]:
    return lambda root: write_rows(root, [row(n, **changes) if n == number else row(n) for n in range(10)])


def bomb(path: Path) -> None:
    """An image of 80 bytes that would take 1.2 GB."""
    content = bytearray(image_bytes(0))
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


# What spoils an image; the reason; the rows that are then left out; whether it counts as missing.
CASES: dict[str, tuple[Callable[[Path], object], str, list[int], str]] = {
    "missing": (lambda root: (root / IMAGES / "1.png").unlink(), f"{IMAGES}/1.png", [1, 4, 7], "missing"),
    "named wrongly": (rewrite(7, qry_image_path="images/A/Train/x.png"), "images/A/Train/x.png", [7], "missing"),
    "half": (lambda root: write_half_a_photograph(root / IMAGES / "2.png"), "truncated", [2, 5, 8], "unreadable"),
    "a page": (lambda root: (root / IMAGES / "1.png").write_text("<html>"), "not a JPEG", [1, 4, 7], "unreadable"),
    "empty": (lambda root: (root / IMAGES / "1.png").write_bytes(b""), "empty file", [1, 4, 7], "unreadable"),
    "bomb": (lambda root: bomb(root / IMAGES / "1.png"), "pixels", [1, 4, 7], "unreadable"),
    "out": (rewrite(8, pos_image_path="../secret.png"), "must be relative", [8], "unreadable"),
    "absolute": (rewrite(8, pos_image_path="/etc/hostname"), "must be relative", [8], "unreadable"),
    "NUL": (rewrite(8, pos_image_path="a\0b"), "NUL", [8], "unreadable"),
    "folder": (rewrite(8, pos_image_path="images"), "not a regular file", [8], "unreadable"),
    "link": (
        lambda root: [
            (root / IMAGES / "9.png").symlink_to("/etc/hostname"),
            rewrite(9, qry_image_path=f"{IMAGES}/9.png")(root),
        ],
        "leads out",
        [9],
        "unreadable",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_image_that_cannot_be_used_is_named_and_its_rows_are_left_out(
    case: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, reason, rows, kind = CASES[case]
    spoil(dataset)
    assert run_main(monkeypatch, dataset, tmp_path / "o", "--rows_per_shard", "4") == 3
    assert "1 missing or unreadable image, more than --max_missing 0" in capsys.readouterr().out
    with pytest.raises(InputError, match="no manifest"):
        ShardSet.open(tmp_path / "o")

    assert run_main(monkeypatch, dataset, tmp_path / "o", "--rows_per_shard", "4", "--max_missing", "1") == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    for part in (report["total"], report["subsets"]["A"]):
        assert (part["rows"], part["samples"], part[f"{kind}_images"]) == (10, 10 - len(rows), 1)
        assert part["missing_images"] + part["unreadable_images"] == 1
        (name,) = part[f"first_{kind}"]
        assert reason in name
    assert f"A: 1 {kind} images:\n" in shown
    assert reason in shown
    kept = ShardSet.open(tmp_path / "o").columns("A")["row"].tolist()
    assert kept == [number for number in range(10) if number not in rows]


def test_once_the_images_are_there_the_same_call_completes_the_shards(dataset: Path, tmp_path: Path) -> None:
    converted(dataset, tmp_path / "whole", rows_per_shard=4)
    path = dataset / IMAGES / "1.png"
    content = path.read_bytes()
    path.unlink()
    assert (
        convert(
            SourceData(dataset, dataset, ["A"]), tmp_path / "o", replace(DEFAULT_OPTIONS, rows_per_shard=4)
        ).manifest
        is None
    )
    path.write_bytes(content)
    converted(dataset, tmp_path / "o", rows_per_shard=4)
    assert tree(tmp_path / "o") == tree(tmp_path / "whole")


def test_the_limit_is_on_images_and_an_excess_takes_the_manifest_away(dataset: Path, tmp_path: Path) -> None:
    for name in ("0.png", "1.png"):
        (dataset / IMAGES / name).unlink()
    assert (
        convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o", tolerance=Tolerance(max_missing=2)).manifest
        is not None
    )
    assert (
        convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o", tolerance=Tolerance(max_missing=1)).manifest
        is None
    )
    assert not (tmp_path / "o" / "manifest.json").exists()


def test_a_wrong_image_folder_is_reported_before_anything_is_written(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=f"{TABLE}: none of its first images below .* can be used: .*0.png: no such image"
    ):
        convert(SourceData(dataset, tmp_path / "empty", ["A"]), tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_repeats_are_counted_by_content(dataset: Path, tmp_path: Path) -> None:
    (dataset / IMAGES / "9.png").write_bytes(image_bytes(0))  # the same image under another name
    rows = [row(0), row(0), row(0, qry_image_path=f"{IMAGES}/9.png"), row(0, pos_text="other"), row(1)]
    write_rows(dataset, rows)
    write_rows(dataset, [row(1)], "B/original-00000-of-00001.parquet")
    report = convert(
        SourceData(dataset, dataset, ["A", "B"]), tmp_path / "o", replace(DEFAULT_OPTIONS, rows_per_shard=2)
    ).report
    counts = {
        name: (part.images, part.distinct_images, part.samples - part.distinct_pairs)
        for name, part in (*report.subsets.items(), ("all", report.total))
    }
    assert counts == {"A": (5, 2, 2), "B": (1, 1, 0), "all": (6, 2, 3)}
    assert report.total.image_bytes == 4 * len(image_bytes(0)) + 2 * len(image_bytes(1))
    assert report.total.bytes == sum(path.stat().st_size for path in (tmp_path / "o").rglob("*.tar"))


@pytest.mark.parametrize(
    ("check", "left_out"), [("decode", [1, 2, 4, 5, 7, 8]), ("header", [1, 4, 7]), ("none", [1, 4, 7])]
)
def test_a_lighter_check_passes_half_an_image_but_never_a_page(
    check: str, left_out: list[int], dataset: Path, tmp_path: Path
) -> None:
    (dataset / IMAGES / "1.png").write_text("<html>")
    write_half_a_photograph(dataset / IMAGES / "2.png")
    converted(dataset, tmp_path / "o", tolerance=Tolerance(max_missing=2), check_images=check)
    columns = ShardSet.open(tmp_path / "o").columns("A")
    assert columns["row"].tolist() == [number for number in range(10) if number not in left_out]
    assert set(zip(columns["query_widths"].tolist(), columns["query_heights"].tolist(), strict=True)) <= {
        (7, 9),
        (64, 64),
    }


def test_the_program_itself(dataset: Path, tmp_path: Path) -> None:
    (dataset / IMAGES / "2.png").unlink()
    command = [sys.executable, "-m", "data_prep.convert", "--dataset_name", dataset, "--subset_name", "A"]
    command += ["--output_dir", tmp_path / "o", "--num_workers", "2"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert (result.returncode, result.stderr) == (3, "")
    assert f"A: 1 missing images:\n  {IMAGES}/2.png\n" in result.stdout
