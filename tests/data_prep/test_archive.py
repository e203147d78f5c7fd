from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.archive import ImageArchive
from data_prep.conversion import convert
from data_prep.conversion_plan import DEFAULT_OPTIONS
from data_prep.source import SourceData
from trials.rig.hand_made_train import converted, image_bytes, row, tree, write_rows
from vlm2vec.errors import InputError
from vlm2vec.images.paths import MissingImageError, UnsafePathError
from vlm2vec.shards import ShardSet

IMAGES = "images/A/Train"


def pack(dataset: Path, prefix: str, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """Puts subset A's images into its zip, under names that begin with `prefix`, and removes the tree."""
    path = dataset / "images_zip" / "A.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted((dataset / IMAGES).iterdir()):
            archive.write(file, f"{prefix}{file.name}")
            file.unlink()
    return path


@pytest.mark.parametrize("prefix", ["images/A/Train/", "A/Train/", "Train/"])
def test_a_zip_is_read_as_if_it_were_unpacked(prefix: str, dataset: Path, tmp_path: Path) -> None:
    unpacked = converted(dataset, tmp_path / "unpacked", rows_per_shard=4).subsets["A"]
    pack(dataset, prefix)
    zipped = converted(dataset, tmp_path / "zipped", num_workers=2, rows_per_shard=4).subsets["A"]
    assert zipped.shards == unpacked.shards
    assert [source.file for source in zipped.sources] == ["A/original-00000-of-00001.parquet", "images_zip/A.zip"]
    tars = {name: content for name, content in tree(tmp_path / "zipped").items() if name.startswith("A/")}
    assert tars.items() <= tree(tmp_path / "unpacked").items()


def test_workers_do_not_share_an_open_zip(dataset: Path, tmp_path: Path) -> None:
    """With one file for all, 60 of 200 images were read from a place to which another worker had moved."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 64, 64, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(dataset / IMAGES / f"{number}.png")
    write_rows(dataset, [row(number, qry_image_path=f"{IMAGES}/{number}.png") for number in range(200)])
    pack(dataset, "A/Train/", zipfile.ZIP_STORED)
    source = SourceData(dataset, dataset, ["A"])
    report = convert(source, tmp_path / "o", replace(DEFAULT_OPTIONS, rows_per_shard=20), num_workers=2).report
    assert (report.total.samples, report.total.unusable_images) == (200, 0)


def test_what_is_unpacked_already_is_taken_from_there(dataset: Path, tmp_path: Path) -> None:
    pack(dataset, "A/Train/")
    (dataset / IMAGES / "1.png").write_bytes(image_bytes(99))
    converted(dataset, tmp_path / "o")
    shards = ShardSet.open(tmp_path / "o")
    assert [shards.read("A", n).query.image for n in range(3)] == [image_bytes(0), image_bytes(99), image_bytes(2)]


def test_another_zip_is_refused(dataset: Path, tmp_path: Path) -> None:
    path = pack(dataset, "A/Train/")
    converted(dataset, tmp_path / "o")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("A/Train/3.png", image_bytes(3))
    with pytest.raises(InputError, match=r"was started with a different images_zip/A\.zip"):
        convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o")


def test_a_part_of_a_zip_is_refused_before_anything_is_written(dataset: Path, tmp_path: Path) -> None:
    path = pack(dataset, "A/Train/")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"A\.zip: not a complete zip .*download it again"):
        convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o")
    assert not (tmp_path / "o").exists()


def flip(content: bytearray, place: int) -> None:
    content[place] ^= 0xFF


def lie_about_size(content: bytearray) -> None:
    """The zip's directory says that its last image unpacks to 3 GB."""
    place = content.rindex(b"PK\1\2")
    content[place + 24 : place + 28] = (3_000_000_000).to_bytes(4, "little")


def encrypt(content: bytearray) -> None:
    for begin, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        content[content.rindex(begin) + flags] |= 1


def claim_method(content: bytearray, number: int) -> None:
    for begin, place in ((b"PK\1\2", 10), (b"PK\3\4", 8)):
        content[content.rindex(begin) + place] = number


DAMAGE: dict[str, tuple[Callable[[bytearray], object], str]] = {
    "data": (lambda content: flip(content, content.rindex(b"PK\3\4") + 60), "damaged in the zip"),
    "size": (lie_about_size, "3000000000 bytes uncompressed are too many"),
    "encrypted": (encrypt, "encrypted; unpack the zip with its password"),
    **{
        method: (partial(claim_method, number=number), rf"method {method} \({number}\).*`7z x`")
        for method, number in (("Deflate64", 9), ("Implode", 6), ("Zstandard", 93), ("XZ", 95), ("PPMd", 98))
    },
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_member_is_reported_by_name(case: str, dataset: Path, tmp_path: Path) -> None:
    spoil, message = DAMAGE[case]
    path = pack(dataset, "A/Train/")
    content = bytearray(path.read_bytes())
    spoil(content)
    path.write_bytes(content)
    report = convert(
        SourceData(dataset, dataset, ["A"]), tmp_path / "o", replace(DEFAULT_OPTIONS, check_images="none")
    ).report.subsets["A"]
    assert (report.samples, report.unreadable_images) == (7, 1)
    assert f"{IMAGES}/2.png" in report.first_unreadable[0]
    assert re.search(message, report.first_unreadable[0])
    assert ("download" in report.first_unreadable[0]) == (case == "data")


def test_links_and_paths_that_lead_out_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "A.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("A/Train/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/hostname")
        archive.writestr("../out.png", b"outside")
        archive.writestr("/etc/out.png", b"outside")
        archive.writestr("A/Train/folder/", b"")
    opened = ImageArchive(path)
    for name in (f"{IMAGES}/link.png", "../out.png", "images/../out.png", "/etc/out.png", "..\\out.png"):
        for call in (opened.read, opened.check):
            with pytest.raises(UnsafePathError):
                call(name)
    for name in (f"{IMAGES}/folder", f"{IMAGES}/folder/", f"{IMAGES}/none.png"):
        with pytest.raises(MissingImageError):
            opened.read(name)


def test_missing_members_are_reported(dataset: Path, tmp_path: Path) -> None:
    pack(dataset, "A/Train/")
    write_rows(dataset, [row(0), row(1, qry_image_path=f"{IMAGES}/x.png")])
    report = convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o").report.subsets["A"]
    assert (report.missing_images, report.first_missing) == (1, [f"{IMAGES}/x.png"])
