"""A subset's images, from the unpacked tree or the zip, and what is wrong with them."""

from __future__ import annotations

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

# --check_images: how much of an image must be right.
CHECKS: dict[str, Callable[[bytes, str], ImageHeader]] = {
    "decode": check_image,
    "header": read_header,
    "none": sniff_header,
}

MISSING, UNREADABLE, UNSAFE = "missing image", "unreadable image", "unsafe image path"
LINKS_FLAG = "--allow_links"


class UnusableImageError(Exception):
    """An image that cannot go into a shard: `problem` is one of the three words above, the message says more."""

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
        image_dir: What the tables' paths are relative to; may hold images_zip.
        subset: Whose zip to use.
        allow_links: Follow links that lead out of `image_dir`.

    Raises:
        InputError: No such folder, or a zip that cannot be opened.
    """

    def __init__(self, image_dir: Path, subset: str, allow_links: bool = False) -> None:
        self._folder = ImageFolder(image_dir, allow_links)
        path = archive_path(image_dir, subset)
        self._archive = _opened_archive(path, file_stamp(path)) if path.exists() else None
        if self._archive is None and (parts := loose_parts(path)):
            raise InputError(f"{path.with_name(parts[0])}: {PART_OF_ZIP}")

    def read(self, path: str) -> bytes:
        """The image's bytes.

        Raises:
            UnusableImageError: Not there, not allowed, or unreadable.
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

    def changed_since(self, time_ns: int, path: str) -> bool:
        """Whether the file was written, replaced or renamed after that time, whatever time it claims for itself."""
        try:
            return self._folder.status(path).st_ctime_ns >= time_ns
        except InputError:  # in the zip, or its row was left out
            return False


def refuse_linked_folders(image_dir: Path, subsets: Iterable[str], allow_links: bool) -> None:
    """Looks at the folders in which subsets' images usually are, before any table is read.

    Raises:
        InputError: No such folder; without `allow_links`, one that is a link out of `image_dir`.
    """
    images = ImageFolder(image_dir, allow_links)
    with links_remedy(LINKS_FLAG):
        for subset in subsets:
            images.refuse_outside_links(f"{UNPACKED_FOLDER}/{subset}")


def archive_path(image_dir: Path, subset: str) -> Path:
    """Where a subset's zip lies if it was downloaded."""
    return image_dir / ARCHIVE_FOLDER / f"{subset}.zip"


# Listing a zip of 100,000 members takes a second; a process works on one subset after the other.
@lru_cache(maxsize=2)
def _opened_archive(path: Path, stamp: tuple[int, ...]) -> ImageArchive:
    return ImageArchive(path)


class CheckedImages:
    """Reads images and checks each different one once: several rows often share one (four in DocVQA).

    Args:
        source: Where they come from.
        check: A key of `CHECKS`.
    """

    def __init__(self, source: SubsetImages, check: str) -> None:
        self._source, self._check = source, CHECKS[check]
        self._checked: dict[int, ImageHeader] = {}

    def load(self, image: RawImage) -> StoredImage:
        """An image ready to be stored.

        Raises:
            UnusableImageError: It is not there, not allowed, or does not pass the check.
        """
        path = image.name
        data = self._source.read(path) if image.data is None else image.data
        if len(data) > MAX_IMAGE_BYTES:  # of a file, its folder tells before it is read
            raise UnusableImageError(path, InputError(f"{path}: {len(data)} bytes are too many for an image"))
        digest = fast_hash(data)
        header = self._checked.get(digest)
        if header is None:
            try:
                header = self._check(data, path)
            except InputError as error:  # not remembered: an equal file elsewhere is reported by its own path
                raise UnusableImageError(path, error) from error
            self._checked[digest] = header
        return StoredImage(data, header, digest, path)
