"""Reads pictures straight from images_zip/<Subset>.zip, without unpacking."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from pathlib import Path

from vlm2vec.errors import InputError
from vlm2vec.image_folder import MissingImageError, UnsafePathError, check_relative
from vlm2vec.images import MAX_IMAGE_BYTES

ARCHIVE_FOLDER = "images_zip"
# Unpacking turns images_zip/X.zip into images/X; a table's paths begin with either, a zip's members with none or both.
_UNPACKED_FOLDER = "images"
_ENCRYPTED = 0x1


class ImageArchive:
    """A subset's zip, read by the paths that its tables name. Nothing is ever unpacked to disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._prefixes = ("", f"{_UNPACKED_FOLDER}/", f"{_UNPACKED_FOLDER}/{path.stem}/")
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise InputError(f"{path}: not a complete zip ({error}); download it again") from error

    def read(self, relative: str) -> bytes:
        """The bytes of the picture that a table calls `relative`, checked against the zip's own checksum.

        Raises:
            UnsafePathError: an absolute path, `..`, a backslash or a NUL in it; a link.
            MissingImageError: no such member.
            InputError: damaged, encrypted, or larger than a picture can be.
        """
        member = self._member(relative)
        name = f"{self.path}: {relative}"
        try:
            with self._zip.open(member) as file:
                return file.read()  # never more than the size checked above, whatever the packed data hold
        except MemoryError:
            raise
        except Exception as error:  # zipfile lets through whatever the packed data and their decoders trigger
            raise InputError(
                f"{name}: damaged in the zip ({' '.join(str(error).split())}); download it again"
            ) from error

    def check(self, relative: str) -> None:
        """Raises what `read` would raise, but for damaged data."""
        self._member(relative)

    def _member(self, relative: str) -> zipfile.ZipInfo:
        check_relative(relative)
        name = f"{self.path}: {relative}"
        found = None
        for prefix in self._prefixes:
            if relative.startswith(prefix) and not found:
                found = self._zip.NameToInfo.get(relative[len(prefix) :])
        if found is None or found.is_dir():
            raise MissingImageError(f"{name}: no such picture in the zip")
        if stat.S_ISLNK(found.external_attr >> 16):
            raise UnsafePathError(f"{name}: a link")
        if found.flag_bits & _ENCRYPTED:
            raise InputError(f"{name}: encrypted")
        if found.file_size > MAX_IMAGE_BYTES:
            raise InputError(f"{name}: {found.file_size} bytes unpacked are too many for a picture")
        return found

    def digest(self) -> str:
        """sha256 of the zip's directory, which holds every member's name, size and checksum."""
        with open(self.path, "rb") as file:
            file.seek(self._zip.start_dir)
            return hashlib.sha256(file.read()).hexdigest()
