"""Normalises paths of images, which data files, zips and file systems write differently."""

from __future__ import annotations

import re
import unicodedata

from vlm2vec.errors import InputError

_DRIVE = re.compile(r"[A-Za-z]:/")


class MissingImageError(InputError):
    """There is no such image."""


class UnsafePathError(InputError):
    """The path of an image leads, or could lead, out of its folder."""


class OutsideLinkError(UnsafePathError):
    """A link leads out of the image folder, which is not allowed."""


def plain_path(path: str) -> str:
    r"""Normalises a path as unzip does: `/` between its parts, without empty parts and `.`.

    Args:
        path: A relative path; `\` (Windows) is a separator like `/`.

    Raises:
        UnsafePathError: The path is absolute, or contains `..` or NUL.
    """
    if "\0" in path:
        raise UnsafePathError(f"{path!r}: NUL in an image's path")
    slashed = path.replace("\\", "/")
    parts = slashed.split("/")
    if slashed.startswith("/") or _DRIVE.match(slashed) or ".." in parts:
        raise UnsafePathError(f"{path}: an image's path must be relative and without '..'")
    if "" in parts or "." in parts:
        return "/".join(part for part in parts if part not in ("", "."))
    return slashed


def composed(path: str) -> str:
    """The path in Unicode's composed form (NFC): macOS writes `é` as two characters, most tables as one."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)
