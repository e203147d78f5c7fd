"""Folders of frames as clips: choice and order of frames, confined to the folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vlm2vec.errors import InputError
from vlm2vec.images.folder import ImageFolder
from vlm2vec.images.paths import OutsideLinkError, UnsafePathError
from vlm2vec.item_rules import IMAGE_ONLY_TEXT, with_frames


def write_frames(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for frame in range(count):
        (folder / f"f{frame}.jpg").touch()


@pytest.mark.parametrize(("count", "wanted"), [(1, 8), (8, 8), (9, 8), (64, 8), (50, 3), (5, 1), (64, 2)])
def test_frames_are_evenly_spaced_as_mmeb_v2_takes_them(count: int, wanted: int, tmp_path: Path) -> None:
    write_frames(tmp_path / "clip", count)
    numbers = range(count) if count <= wanted else np.linspace(0, count - 1, wanted, dtype=int)
    expected = tuple(f"clip/f{number}.jpg" for number in numbers)
    assert ImageFolder(tmp_path, num_frames=wanted).files("./clip") == expected


def test_an_image_is_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for folder in (ImageFolder(tmp_path), ImageFolder(tmp_path, num_frames=4)):
        assert folder.files("a.png") == ("a.png",)
        assert folder.files("missing.png") == ("missing.png",)


def test_clips_stay_inside_their_folder(tmp_path: Path) -> None:
    write_frames(tmp_path / "outside", 2)
    inside = tmp_path / "inside"
    write_frames(inside / "empty", 0)
    os.symlink(tmp_path / "outside", inside / "link")
    folder = ImageFolder(inside, num_frames=2)
    for path in ("../outside", "/etc", "a\0b"):
        with pytest.raises(UnsafePathError):
            folder.files(path)
    with pytest.raises(OutsideLinkError, match="a link that leads out"):
        folder.files("link")
    with pytest.raises(InputError, match=r"empty: a folder without frames \(.jpg, .jpeg, .png\)"):
        folder.files("empty")
    with pytest.raises(
        InputError, match=r"not a regular file \(a folder; where a number of frames is given, it is read as a clip\)"
    ):
        ImageFolder(inside).read("empty")


@pytest.mark.parametrize(
    ("text", "num_frames", "expected"),
    [
        ("<|image_1|> what?", 1, "<|image_1|> what?"),
        ("<|image_1|> what?", 3, "<|image_1|><|image_2|><|image_3|> what?"),
        ("", 1, ""),
        ("", 2, IMAGE_ONLY_TEXT.replace("<|image_1|>", "<|image_1|><|image_2|>")),
    ],
)
def test_a_tag_becomes_one_for_each_frame(text: str, num_frames: int, expected: str) -> None:
    assert with_frames(text, num_frames) == expected
