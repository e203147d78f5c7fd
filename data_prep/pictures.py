"""A subset's pictures, from the unpacked tree or the zip, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from data_prep.archive import ARCHIVE_FOLDER, ImageArchive
from data_prep.sniff import sniff_header
from data_prep.source import file_stamp
from vlm2vec.errors import InputError
from vlm2vec.image_folder import ImageFolder, MissingImageError, UnsafePathError
from vlm2vec.images import ImageHeader, check_image, read_header
from vlm2vec.shards.schema import fast_hash
from vlm2vec.shards.writer import StoredImage

# --check_images: how much of a picture must be right.
CHECKS: dict[str, Callable[[bytes, str], ImageHeader]] = {
    "decode": check_image,
    "header": read_header,
    "none": sniff_header,
}

MISSING, UNREADABLE, UNSAFE = "missing image", "unreadable image", "unsafe image path"


class UnusableImageError(Exception):
    """A picture that cannot go into a shard: `problem` is one of the three words above, the message says more."""

    def __init__(self, path: str, error: InputError) -> None:
        super().__init__(str(error))
        self.path = path
        self.problem = UNREADABLE
        if isinstance(error, MissingImageError):
            self.problem = MISSING
        elif isinstance(error, UnsafePathError):
            self.problem = UNSAFE


class PictureSource:
    """Opens a subset's pictures: a file of the unpacked tree, or else a member of the subset's zip.

    Args:
        image_dir: what the tables' paths are relative to; may hold images_zip.
        subset: whose zip to use.
    """

    def __init__(self, image_dir: Path, subset: str) -> None:
        self._folder = ImageFolder(image_dir)
        path = archive_path(image_dir, subset)
        self._archive = _opened_archive(path, file_stamp(path)) if path.exists() else None

    def read(self, path: str) -> bytes:
        """The picture's bytes.

        Raises:
            UnusableImageError: not there, not allowed, or unreadable.
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
        """Raises what `read` would raise, but for damaged data."""
        try:
            try:
                self._folder.check(path)
            except MissingImageError:
                if self._archive is None:
                    raise
                self._archive.check(path)
        except InputError as error:
            raise UnusableImageError(path, error) from error


def archive_path(image_dir: Path, subset: str) -> Path:
    """Where a subset's zip lies if it was downloaded."""
    return image_dir / ARCHIVE_FOLDER / f"{subset}.zip"


# Listing a zip of 100,000 members takes a second; a process works on one subset after the other.
@lru_cache(maxsize=2)
def _opened_archive(path: Path, stamp: tuple[int, ...]) -> ImageArchive:
    return ImageArchive(path)


class CheckedPictures:
    """Reads pictures and checks each different one once: several rows often share one (four in DocVQA).

    Args:
        source: where they come from.
        check: a key of `CHECKS`.
    """

    def __init__(self, source: PictureSource, check: str) -> None:
        self._source, self._check = source, CHECKS[check]
        self._checked: dict[int, ImageHeader | InputError] = {}

    def load(self, path: str) -> StoredImage:
        """A picture ready to be stored.

        Raises:
            UnusableImageError: it is not there, not allowed, or does not pass the check.
        """
        data = self._source.read(path)
        digest = fast_hash(data)
        header = self._checked.get(digest)
        if header is None:
            try:
                header = self._check(data, path)
            except InputError as error:
                header = error
            self._checked[digest] = header
        if isinstance(header, InputError):
            raise UnusableImageError(path, header)
        return StoredImage(data, header, digest, path)
