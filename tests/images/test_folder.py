from __future__ import annotations

import os
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import pytest

from vlm2vec.errors import InputError
from vlm2vec.images.folder import ImageFolder
from vlm2vec.images.paths import MissingImageError, OutsideLinkError, UnsafePathError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.png").write_bytes(b"inside")
    (tmp_path / "secret.png").write_bytes(b"outside")
    return root


def test_reads_files_inside_also_through_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "link.png").symlink_to("sub/a.png")
    linked_root = tmp_path / "linked"
    linked_root.symlink_to(folder)
    for root in (folder, linked_root):
        assert ImageFolder(root).read("sub/a.png") == b"inside"
        assert ImageFolder(root).read("link.png") == b"inside"


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "sub/../../secret.png",
        "/etc/hostname",
        "C:\\a.png",
        "..\\secret.png",
        "\\a",
        "sub/a.png\0",
        "..",
    ],
)
def test_paths_that_could_lead_out_are_refused(path: str, folder: Path) -> None:
    with pytest.raises(InputError, match=r"relative and without|NUL") as caught:
        ImageFolder(folder).read(path)
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("path", ["./sub/a.png", "sub//a.png", "sub/./a.png", "sub\\a.png", ".\\sub\\a.png"])
def test_paths_are_read_as_unzip_reads_them(path: str, folder: Path) -> None:
    assert ImageFolder(folder).read(path) == b"inside"


Form = Literal["NFC", "NFD"]


@pytest.mark.parametrize(("on_disk", "asked"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC"), ("NFD", "NFD")])
def test_accents_may_be_one_character_or_two(on_disk: Form, asked: Form, folder: Path) -> None:
    path = "fotos-é/été/ü.png"
    file = folder / normalize(on_disk, path)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"accent")
    (folder / "fotos-é.txt").write_bytes(b"")
    images = ImageFolder(folder)
    assert images.read(normalize(asked, path)) == b"accent"
    with pytest.raises(MissingImageError):
        images.read(normalize(asked, "fotos-é/été/ö.png"))


def test_two_unicode_forms_of_one_name_must_hold_the_same_bytes(folder: Path) -> None:
    asked, *forms = ("\u1ead.png", "\u1ea1\u0302.png", "\u00e2\u0323.png")  # one letter, three spellings
    for form in forms:
        (folder / form).write_bytes(b"same")
    assert ImageFolder(folder).read(asked) == b"same"
    (folder / forms[0]).write_bytes(b"different")
    with pytest.raises(InputError, match="differ only in their Unicode form") as caught:
        ImageFolder(folder).read(asked)
    assert all(repr(form) in str(caught.value) for form in forms)
    assert ImageFolder(folder).read(forms[0]) == b"different"


@pytest.mark.parametrize("target", ["../secret.png", "/etc/hostname"])
def test_links_that_lead_out_are_refused(target: str, folder: Path) -> None:
    (folder / "sub" / "link.png").symlink_to(target if target.startswith("/") else "../../secret.png")
    (folder / "out").symlink_to("..")
    for path in ("sub/link.png", "out/secret.png"):
        with pytest.raises(OutsideLinkError, match=f"{path}: a link that leads out"):
            ImageFolder(folder).read(path)


def test_links_that_lead_out_are_followed_where_they_are_allowed(folder: Path, tmp_path: Path) -> None:
    (folder / "out").symlink_to("..")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    images = ImageFolder(folder, allow_links=True)
    assert images.read("link.png") == images.read("out/secret.png") == b"outside"
    for path in ("../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(UnsafePathError):
            images.read(path)


def test_linked_folders_are_found_before_an_image_is_read(folder: Path, tmp_path: Path) -> None:
    (folder / "inside").symlink_to("sub")
    (tmp_path / "disk2").mkdir()
    (folder / "sub" / "Train").symlink_to(tmp_path / "disk2")
    for allow_links in (False, True):
        images = ImageFolder(folder, allow_links)
        images.refuse_outside_links(".")
        images.refuse_outside_links("nowhere")
        if allow_links:
            images.refuse_outside_links("sub")
        else:
            with pytest.raises(OutsideLinkError, match="sub/Train: a link that leads out"):
                images.refuse_outside_links("sub")


def test_a_sibling_whose_name_begins_alike_is_outside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "images-2").mkdir()
    (tmp_path / "images-2" / "b.png").write_bytes(b"outside")
    (folder / "link.png").symlink_to(tmp_path / "images-2" / "b.png")
    with pytest.raises(InputError, match="leads out"):
        ImageFolder(folder).read("link.png")


def test_missing_files_folders_and_pipes_are_named(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")  # opening it would wait for ever
    for path, reason in (("none.png", "no such image"), ("sub", "not a regular"), ("pipe.png", "not a regular")):
        with pytest.raises(InputError, match=f"{path}: {reason}"):
            ImageFolder(folder).read(path)
    with pytest.raises(InputError, match="no such image folder"):
        ImageFolder(folder / "nowhere")
