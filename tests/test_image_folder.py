from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlm2vec.errors import InputError
from vlm2vec.image_folder import ImageFolder


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
    ["../secret.png", "sub/../../secret.png", "/etc/hostname", "sub\\a.png", "..\\secret.png", "sub/a.png\0", ".."],
)
def test_paths_that_could_lead_out_are_refused(path: str, folder: Path) -> None:
    with pytest.raises(InputError, match=r"relative and without|backslash or NUL") as caught:
        ImageFolder(folder).read(path)
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("target", ["../secret.png", "/etc/hostname"])
def test_links_that_lead_out_are_refused(target: str, folder: Path) -> None:
    (folder / "sub" / "link.png").symlink_to(target if target.startswith("/") else "../../secret.png")
    (folder / "out").symlink_to("..")
    for path in ("sub/link.png", "out/secret.png"):
        with pytest.raises(InputError, match="leads out"):
            ImageFolder(folder).read(path)


def test_a_sibling_whose_name_begins_alike_is_outside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "images-2").mkdir()
    (tmp_path / "images-2" / "b.png").write_bytes(b"outside")
    (folder / "link.png").symlink_to(tmp_path / "images-2" / "b.png")
    with pytest.raises(InputError, match="leads out"):
        ImageFolder(folder).read("link.png")


def test_missing_files_folders_and_pipes_are_named(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")  # opening it would wait for ever
    for path, reason in (("none.png", "no such picture"), ("sub", "not a regular"), ("pipe.png", "not a regular")):
        with pytest.raises(InputError, match=f"{path}: {reason}"):
            ImageFolder(folder).read(path)
    with pytest.raises(InputError, match="no such image folder"):
        ImageFolder(folder / "nowhere")
