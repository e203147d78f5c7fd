"""One spelling for the paths under which data files, zips and file systems know the same image."""

from __future__ import annotations

import re
import unicodedata

from vlm2vec.errors import InputError

_DRIVE = re.compile(r"[A-Za-z]:/")


class MissingImageError(InputError):
    """There is no such image."""


class UnsafePathError(InputError):
    """An image's path that leads, or could lead, out of its folder."""


class OutsideLinkError(UnsafePathError):
    """A link that leads out of the image folder, where that is not allowed."""


def plain_path(path: str) -> str:
    r"""The path with `/` between its parts and without empty parts and `.`, as unzip creates it from a member's name.

    Args:
        path: A relative path; `\` (Windows) separates like `/`.

    Raises:
        UnsafePathError: An absolute path, `..` or a NUL in it.
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
    """The path in Unicode's composed form (NFC): macOS writes `é` as two characters, tables mostly as one."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)
