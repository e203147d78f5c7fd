"""Reads images directly from images_zip/<Subset>.zip, without unpacking the zip."""

from __future__ import annotations

import hashlib
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NoReturn

from data_prep.archive_faults import METHODS, PART_OF_ZIP, closed_archive_reason, is_part_of_zip
from vlm2vec.errors import InputError
from vlm2vec.images.decode import MAX_IMAGE_BYTES
from vlm2vec.images.paths import MissingImageError, UnsafePathError, composed, plain_path

ARCHIVE_FOLDER = "images_zip"
# Unpacking turns images_zip/X.zip into images/X. Paths in tables begin with either; names in zips with none or both.
UNPACKED_FOLDER = "images"
_ENCRYPTED, _NAME_IS_UTF8 = 0x1, 0x800
# Info-ZIP's extra field with a member's name in UTF-8, beside one in a legacy code page.
_UNICODE_PATH = 0x7075
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


class ImageArchive:
    """A subset's zip, read by the paths that its tables name. Nothing is ever unpacked to disk.

    A path refers to the member that unzip would unpack to it: see `_member_path`.

    Raises:
        InputError: The file is not a complete zip; the message says what it is instead and what to do.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._prefixes = ("", f"{UNPACKED_FOLDER}/", f"{UNPACKED_FOLDER}/{path.stem}/")
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
            raise InputError(f"{path}: {closed_archive_reason(path, error)}") from error
        if is_part_of_zip(path):
            raise InputError(f"{path}: {PART_OF_ZIP}")
        self._members: dict[str, list[zipfile.ZipInfo]] = {}
        for member in self._zip.infolist():
            name = _member_path(member)
            if name is not None:
                self._members.setdefault(name, []).append(member)

    def read(self, relative: str) -> bytes:
        """The bytes of the image that a table calls `relative`, checked against the zip's own checksum.

        Raises:
            UnsafePathError: An absolute path, `..` or a NUL in it; a link.
            MissingImageError: No such member.
            InputError: Two different members under this name; one that is damaged, encrypted, packed by a method that
                cannot be read here, or larger than an image can be.
        """
        member = self._member(relative)
        name = f"{self.path}: {relative}"
        try:
            with self._zip.open(member) as file:
                return file.read()  # at most the size checked above, whatever the compressed data contains
        except MemoryError:
            raise
        except Exception as error:  # zipfile passes on whatever its decoders raise on damaged data
            raise InputError(
                f"{name}: damaged in the zip ({' '.join(str(error).split())}); download it again"
            ) from error

    def check(self, relative: str) -> None:
        """Raises what `read` would raise, except for damaged data."""
        self._member(relative)

    def _member(self, relative: str) -> zipfile.ZipInfo:
        path = composed(plain_path(relative))
        name = f"{self.path}: {relative}"
        found: list[zipfile.ZipInfo] = []
        for prefix in self._prefixes:
            if path.startswith(prefix) and not found:
                found = self._members.get(path[len(prefix) :], [])
        if not found:
            raise MissingImageError(f"{name}: no such image in the zip")
        *others, member = found
        for other in others:
            if (other.CRC, other.file_size) != (member.CRC, member.file_size):
                _refuse_twins(name, other, member)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UnsafePathError(f"{name}: a link")
        if member.flag_bits & _ENCRYPTED:
            raise InputError(f"{name}: encrypted; unpack the zip with its password (7z x), or pack it again without")
        if member.compress_type not in _READABLE:
            method = METHODS.get(member.compress_type, "unknown")
            raise InputError(
                f"{name}: compressed with method {method} ({member.compress_type}), which Python cannot read; unpack "
                f"the zip into {UNPACKED_FOLDER}/ with `7z x` or `unzip`, or pack it again with Deflate"
            )
        if member.file_size > MAX_IMAGE_BYTES:
            raise InputError(f"{name}: {member.file_size} bytes uncompressed are too many for an image")
        return member

    def digest(self) -> str:
        """sha256 of the zip's directory, which holds every member's name, size and checksum."""
        with open(self.path, "rb") as file:
            file.seek(self._zip.start_dir)
            return hashlib.sha256(file.read()).hexdigest()


def _refuse_twins(name: str, first: zipfile.ZipInfo, second: zipfile.ZipInfo) -> NoReturn:
    names = (first.orig_filename, second.orig_filename)
    raise InputError(
        f"{name}: the members {names[0]!r} and {names[1]!r} have this name and different content; pack the zip again "
        "with one of them"
    )


def _member_path(member: zipfile.ZipInfo) -> str | None:
    """The path to which unzip would unpack a member, composed (NFC). None for a folder, or a path that leads out.

    A name in UTF-8 is accepted even if the zip does not mark it as such (macOS and older Linux tools), and an intact
    Unicode path field takes precedence over the name. A leading `/` is dropped, as unzip does.
    """
    marked = bool(member.flag_bits & _NAME_IS_UTF8)
    raw = member.orig_filename.encode("utf-8" if marked else "cp437")
    name = _unicode_path(member.extra, raw) or _utf8(raw) or member.orig_filename  # the last: from a legacy code page
    name = name.split("\0")[0].replace("\\", "/")
    if name.endswith("/"):
        return None
    try:
        return composed(plain_path(name.lstrip("/")))
    except UnsafePathError:
        return None


def _unicode_path(extra: bytes, raw_name: bytes) -> str | None:
    """The name in the Unicode path field (PKWARE's APPNOTE, 4.6.9), if there is one and it belongs to this name."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and field[:5] == b"\x01" + zlib.crc32(raw_name).to_bytes(4, "little"):
            return _utf8(field[5:])
    return None


def _utf8(name: bytes) -> str | None:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return None
