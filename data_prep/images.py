"""Reads and checks a subset's images, from the unpacked tree or the zip."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from data_prep.archive import ARCHIVE_FOLDER, UNPACKED_FOLDER, ImageArchive
from data_prep.archive_faults import PART_OF_ZIP, loose_parts
from data_prep.rows import RawImage
from data_prep.sniff import sniff_header
from data_prep.source import file_stamp
from vlm2vec.errors import InputError
from vlm2vec.images.decode import MAX_IMAGE_BYTES, ImageHeader, check_image, read_header
from vlm2vec.images.folder import ImageFolder, links_remedy
from vlm2vec.images.paths import MissingImageError, OutsideLinkError, UnsafePathError
from vlm2vec.shards.schema import fast_hash
from vlm2vec.shards.writer import StoredImage

# --check_images: how thoroughly an image is checked.
CHECKS: dict[str, Callable[[bytes, str], ImageHeader]] = {
    "decode": check_image,
    "header": read_header,
    "none": sniff_header,
}

MISSING, UNREADABLE, UNSAFE = "missing image", "unreadable image", "unsafe image path"
LINKS_FLAG = "--allow_links"


class UnusableImageError(Exception):
    """An image that cannot be written to a shard. `problem` is one of the three constants above."""

    def __init__(self, path: str, error: InputError) -> None:
        remedy = f"; pass {LINKS_FLAG} to follow it" if isinstance(error, OutsideLinkError) else ""
        super().__init__(f"{error}{remedy}")
        self.path = path
        self.problem = UNREADABLE
        if isinstance(error, MissingImageError):
            self.problem = MISSING
        elif isinstance(error, UnsafePathError):
            self.problem = UNSAFE


class SubsetImages:
    """Opens a subset's images: a file of the unpacked tree, or else a member of the subset's zip.

    Args:
        image_dir: The folder that the tables' paths are relative to; may contain images_zip.
        subset: The subset whose zip is used.
        allow_links: Whether to follow links that lead out of `image_dir`.

    Raises:
        InputError: There is no such folder, or the zip cannot be opened.
    """

    def __init__(self, image_dir: Path, subset: str, allow_links: bool = False) -> None:
        self._folder = ImageFolder(image_dir, allow_links)
        path = archive_path(image_dir, subset)
        self._archive = _opened_archive(path, file_stamp(path), os.getpid()) if path.exists() else None
        if self._archive is None and (parts := loose_parts(path)):
            raise InputError(f"{path.with_name(parts[0])}: {PART_OF_ZIP}")

    def read(self, path: str) -> bytes:
        """The image's bytes.

        Raises:
            UnusableImageError: The image is missing, not allowed, or unreadable.
        """
        try:
            return self._read(path)
        except InputError as error:
            raise UnusableImageError(path, error) from error

    def _read(self, path: str) -> bytes:
        if self._archive is None:
            return self._folder.read(path)
        try:
            return self._folder.read(path)
        except MissingImageError:
            return self._archive.read(path)

    def check(self, path: str) -> None:
        """Raises what `read` would raise, except for damaged data."""
        try:
            try:
                self._folder.check(path)
            except MissingImageError:
                if self._archive is None:
                    raise
                self._archive.check(path)
        except InputError as error:
            raise UnusableImageError(path, error) from error

    def changed_since(self, time_ns: int, path: str) -> bool:
        """Whether the file was written, replaced or renamed after that time, by its ctime."""
        try:
            return self._folder.status(path).st_ctime_ns >= time_ns
        except InputError:  # it is in the zip, or its row was left out
            return False


def refuse_linked_folders(image_dir: Path, subsets: Iterable[str], allow_links: bool) -> None:
    """Checks the folders that usually hold the subsets' images, before any table is read.

    Raises:
        InputError: There is no such folder, or it is a link out of `image_dir` and `allow_links` is False.
    """
    images = ImageFolder(image_dir, allow_links)
    with links_remedy(LINKS_FLAG):
        for subset in subsets:
            images.refuse_outside_links(f"{UNPACKED_FOLDER}/{subset}")


def archive_path(image_dir: Path, subset: str) -> Path:
    """The path of a subset's zip, if it was downloaded."""
    return image_dir / ARCHIVE_FOLDER / f"{subset}.zip"


# Cached, because listing a zip of 100,000 members takes a second. A process works on one subset after the other.
# The process is part of the key: processes that read through one open file move each other's place in it, so a forked
# worker must not use the zip that its parent opened to check the first images.
@lru_cache(maxsize=2)
def _opened_archive(path: Path, stamp: tuple[int, ...], process: int) -> ImageArchive:
    return ImageArchive(path)


class CheckedImages:
    """Reads images and checks each distinct image once, because rows often share images (in DocVQA, four rows do).

    Args:
        source: Opens the images.
        check: A key of `CHECKS`.
    """

    def __init__(self, source: SubsetImages, check: str) -> None:
        self._source, self._check = source, CHECKS[check]
        self._checked: dict[int, ImageHeader] = {}

    def load(self, image: RawImage) -> StoredImage:
        """Returns an image that can be stored.

        Raises:
            UnusableImageError: The image is missing, not allowed, or does not pass the check.
        """
        path = image.name
        data = self._source.read(path) if image.data is None else image.data
        if len(data) > MAX_IMAGE_BYTES:  # for files, SubsetImages checks this before reading
            raise UnusableImageError(path, InputError(f"{path}: {len(data)} bytes are too many for an image"))
        digest = fast_hash(data)
        header = self._checked.get(digest)
        if header is None:
            try:
                header = self._check(data, path)
            except InputError as error:  # not cached: an identical file elsewhere is reported with its own path
                raise UnusableImageError(path, error) from error
            self._checked[digest] = header
        return StoredImage(data, header, digest, path)
