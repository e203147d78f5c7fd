from __future__ import annotations

import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from unicodedata import normalize

import pytest

from data_prep.archive import ImageArchive
from trials.rig.hand_made_train import converted, image_bytes, row, write_rows
from vlm2vec.errors import InputError
from vlm2vec.images.paths import MissingImageError
from vlm2vec.shards import ShardSet

NAME = "A/Train/é 1.png"
UNIX, WINDOWS = 3, 0


def unicode_path(raw: bytes, name: bytes, crc: int | None = None) -> bytes:
    field = b"\1" + struct.pack("<I", zlib.crc32(raw) if crc is None else crc) + name
    return struct.pack("<HH", 0x7075, len(field)) + field


def make_zip(path: Path, members: Mapping[bytes, bytes], marked: bool = False, extra: bytes = b"") -> Path:
    """A zip whose members have exactly these names, marked as UTF-8 or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    places = {name: b"%05d" % number + b"x" * (len(name) - 5) for number, name in enumerate(members)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(places[name].decode())
            info.create_system = WINDOWS if b"\\" in name else UNIX
            info.extra = extra
            archive.writestr(info, content)
    raw = bytearray(path.read_bytes())
    for begin, flags, head in ((b"PK\3\4", 6, 30), (b"PK\1\2", 8, 46)):
        for name, place in places.items():
            start = raw.index(place, raw.index(begin) if begin == b"PK\3\4" else raw.index(b"PK\1\2"))
            assert raw[start - head : start - head + 4] == begin
            raw[start : start + len(name)] = name
            if marked:
                raw[start - head + flags + 1] |= 0x08
    path.write_bytes(raw)
    return path


SPELLINGS = {
    "dot": f"./{NAME}".encode(),
    "double slash": NAME.replace("/", "//").encode(),
    "leading slash": f"/{NAME}".encode(),
    "inner dot": NAME.replace("Train", "./Train").encode(),
    "backslash": NAME.replace("/", "\\").encode(),
    "images and backslash": f"images\\{NAME}".replace("/", "\\").encode(),
    "NFC": NAME.encode(),
    "NFD": normalize("NFD", NAME).encode(),
    "code page 437": NAME.encode("cp437"),
}


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_members_are_found_as_unzip_names_them(spelling: str, marked: bool, tmp_path: Path) -> None:
    if marked and spelling == "code page 437":
        return  # not UTF-8: the next test's business
    archive = ImageArchive(
        make_zip(tmp_path / "A.zip", {SPELLINGS[spelling]: b"right", b"A/Train/2.png": b"no"}, marked)
    )
    asked = f"images/{NAME}"
    for path in (asked, normalize("NFD", asked), f"./{asked}", asked.replace("/", "\\"), asked.replace("/", "//")):
        assert archive.read(path) == b"right"
        archive.check(path)
    with pytest.raises(MissingImageError):
        archive.read(asked.replace("Train", "train"))  # unzip keeps the case of letters


def test_a_name_that_claims_to_be_utf8_is_not_called_a_half_download(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "A.zip", {NAME.encode("cp437"): b""}, marked=True)
    with pytest.raises(InputError, match=r"A\.zip: a member's name is marked as UTF-8 and is not; unpack"):
        ImageArchive(path)


def test_the_unicode_path_field_names_a_member_if_it_belongs_to_it(tmp_path: Path) -> None:
    raw = b"A/Train/_ 1.png"
    field = unicode_path(raw, NAME.encode())
    assert ImageArchive(make_zip(tmp_path / "A.zip", {raw: b"right"}, extra=field)).read(f"images/{NAME}") == b"right"
    foreign = ImageArchive(make_zip(tmp_path / "A.zip", {raw: b"right"}, extra=unicode_path(raw, NAME.encode(), crc=1)))
    assert foreign.read("images/A/Train/_ 1.png") == b"right"
    with pytest.raises(MissingImageError):
        foreign.read(f"images/{NAME}")


def test_a_unicode_path_field_that_is_not_utf8(tmp_path: Path) -> None:
    """Python 3.12 and later refuse the zip; earlier ones leave the field to us, and the member keeps its name."""
    raw = b"A/Train/_ 1.png"
    path = make_zip(tmp_path / "A.zip", {raw: b"right"}, extra=unicode_path(raw, b"\xff\xfe"))
    if sys.version_info >= (3, 12):
        with pytest.raises(InputError, match=r"\(0x7075\): invalid utf-8 bytes\); test it with `unzip -t`"):
            ImageArchive(path)
    else:
        assert ImageArchive(path).read("images/A/Train/_ 1.png") == b"right"


@pytest.mark.parametrize("second", ["dot", "double slash", "backslash", "NFD"])
def test_two_members_of_one_name_must_be_equal(second: str, tmp_path: Path) -> None:
    names = NAME.encode(), SPELLINGS[second]
    same = ImageArchive(make_zip(tmp_path / "A.zip", dict.fromkeys(names, b"right"), marked=True))
    assert same.read(f"images/{NAME}") == b"right"
    differ = ImageArchive(make_zip(tmp_path / "A.zip", {names[0]: b"left", names[1]: b"right"}, marked=True))
    for call in (differ.read, differ.check):
        with pytest.raises(InputError, match="different content; pack the zip again") as caught:
            call(f"images/{NAME}")
        assert all(repr(name.decode()) in str(caught.value) for name in names)


def test_members_that_would_lead_out_are_never_read(tmp_path: Path) -> None:
    members = [b"../A/Train/1.png", b"A/../A/Train/1.png", b"..\\A\\Train\\1.png", b"images/../A/Train/1.png"]
    archive = ImageArchive(make_zip(tmp_path / "A.zip", dict.fromkeys(members, b"outside")))
    with pytest.raises(MissingImageError):
        archive.read("images/A/Train/1.png")


def test_tables_may_spell_the_paths_of_unpacked_images_differently(dataset: Path, tmp_path: Path) -> None:
    folder = dataset / "images" / "A" / normalize("NFD", "é")
    folder.mkdir()
    (folder / "3.png").write_bytes(image_bytes(77))
    paths = ("./images/A/é/3.png", "images//A/é//3.png", "images\\A\\é\\3.png", normalize("NFD", "images/A/é/3.png"))
    write_rows(dataset, [row(number, qry_image_path=path) for number, path in enumerate(paths)])
    converted(dataset, tmp_path / "o")
    shards = ShardSet.open(tmp_path / "o")
    assert [shards.read("A", number).query.image for number in range(4)] == [image_bytes(77)] * 4
    (folder / "3.png").write_bytes(image_bytes(78))  # a change is seen whatever the spelling
    converted(dataset, tmp_path / "o")
    assert ShardSet.open(tmp_path / "o").read("A", 2).query.image == image_bytes(78)
