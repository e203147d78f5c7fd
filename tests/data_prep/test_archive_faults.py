from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.archive import ImageArchive
from data_prep.conversion import convert
from data_prep.conversion_plan import DEFAULT_OPTIONS
from data_prep.source import SourceData
from trials.rig.hand_made_train import TABLE, image_bytes
from vlm2vec.errors import InputError

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 123456\n"


def tar_of_an_image() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("A/1.png"), io.BytesIO())
    return buffer.getvalue()


def whole_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("A/Train/1.png", b"x" * 100)
    return buffer.getvalue()


def last_part() -> bytes:
    """What `zip -s` leaves in X.zip: the end record says that the directory is in the second of two files."""
    content = bytearray(whole_zip())
    place = content.rindex(b"PK\5\6")
    content[place + 4 : place + 8] = b"\1\0\1\0"
    return bytes(content)


NO_ZIP = {
    "empty": (b"", "an empty file instead of a zip; download it again"),
    "LFS": (LFS_POINTER, "a Git LFS pointer.*`git lfs pull`"),
    "web page": (b"\n<!DOCTYPE html>\n<html><title>Log in</title></html>", "a web page instead of a zip.*logged in"),
    "page with a comment": (b"<!-- x -->\n<HTML>", "a web page instead of a zip"),
    "text": (b"Access to this dataset is restricted.\n", "a text instead of a zip .'Access to this dataset"),
    "gzip": (gzip.compress(b"x"), "not a zip but a gzip file.*tar xzf"),
    "tar": (tar_of_an_image(), "not a zip but a tar .*tar xf"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "not a zip but a 7z archive.*7z x"),
    "last part": (last_part(), "one part of a zip of several parts; .*zip -s 0"),
    "first part": (b"PK\7\x08" + whole_zip()[:-30], "one part of a zip of several parts"),
    "half": (whole_zip()[:-30], "not a complete zip .*; download it again"),
    "directory cut out": (whole_zip()[:100] + whole_zip()[-22:], "a zip that Python cannot read .*unzip -t"),
}


@pytest.mark.parametrize("case", NO_ZIP)
def test_a_file_that_is_not_a_zip_is_reported_with_a_remedy(case: str, tmp_path: Path) -> None:
    content, message = NO_ZIP[case]
    path = tmp_path / "A.zip"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"A\.zip: {message}") as caught:
        ImageArchive(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("parts", [("A.zip.001", "A.zip.002"), ("A.z01", "A.z02"), ("A.zip.partaa",)])
def test_parts_that_were_never_joined_are_named(parts: tuple[str, ...], dataset: Path, tmp_path: Path) -> None:
    (dataset / "images_zip").mkdir()
    for part in parts:
        (dataset / "images_zip" / part).write_bytes(b"part")
    with pytest.raises(InputError, match=rf"images_zip/{parts[0]}: one part of a zip of several parts"):
        convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o")


def test_git_lfs_pointers_are_distinguished_from_damage(dataset: Path, tmp_path: Path) -> None:
    (dataset / "images/A/Train/1.png").write_bytes(LFS_POINTER)
    report = convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o").report.subsets["A"]
    assert report.unreadable_images == 1
    assert "Train/1.png: a Git LFS pointer" in report.first_unreadable[0]
    assert "git lfs pull" in report.first_unreadable[0]
    (dataset / TABLE).write_bytes(LFS_POINTER)
    with pytest.raises(InputError, match=rf"{TABLE}: a Git LFS pointer.*`git lfs pull`"):
        convert(SourceData(dataset, dataset, ["A"]), tmp_path / "p")


def test_equal_broken_images_are_each_reported_by_their_own_path(dataset: Path, tmp_path: Path) -> None:
    for content in (b"", LFS_POINTER, image_bytes(5)[:-30]):
        for number in (0, 2):
            (dataset / f"images/A/Train/{number}.png").write_bytes(content)
        for check in ("decode", "header"):
            output = tmp_path / f"{check}-{len(content)}"
            report = convert(
                SourceData(dataset, dataset, ["A"]), output, replace(DEFAULT_OPTIONS, check_images=check)
            ).report.subsets["A"]
            if check == "header" and content.startswith(b"\x89PNG"):
                continue  # only decoding finds that
            assert report.unreadable_images == 2
            names = [f"images/A/Train/{number}.png" for number in (0, 2)]
            assert [name in line for name, line in zip(names, report.first_unreadable, strict=True)] == [True, True]
