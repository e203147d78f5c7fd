"""Diagnoses files named .zip that cannot be opened: what they are instead, and the remedy."""

from __future__ import annotations

import re
from pathlib import Path

from vlm2vec.files import LFS_REMEDY, is_lfs_pointer

# Compression methods by their number (PKWARE's APPNOTE, 4.4.5).
METHODS = {
    1: "Shrink",
    2: "Reduce",
    3: "Reduce",
    4: "Reduce",
    5: "Reduce",
    6: "Implode",
    9: "Deflate64",
    10: "PKWARE DCL Implode",
    20: "Zstandard",
    93: "Zstandard",
    94: "MP3",
    95: "XZ",
    96: "JPEG",
    97: "WavPack",
    98: "PPMd",
    99: "AES encryption",
}
_HEAD_BYTES = 512
# The end record has 22 bytes, followed by a comment of at most 65,535 bytes.
_TAIL_BYTES = 22 + 65_535
_END_RECORD = b"PK\5\6"
_SPLIT_MARKER = b"PK\7\x08"
PART_OF_ZIP = (
    "one part of a zip of several parts; with all parts beside it, join them with `zip -s 0 X.zip --out joined.zip` "
    "(X.z01, X.z02, ..., X.zip) or `cat X.zip.* > X.zip` (X.zip.001, ...)"
)
_WEB_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|\?xml)", re.IGNORECASE | re.DOTALL
)
_OTHER_FORMATS = (
    (b"\x1f\x8b", "a gzip file, perhaps a .tar.gz (unpack it with `tar xzf`)"),
    (b"BZh", "a bzip2 file, perhaps a .tar.bz2 (unpack it with `tar xjf`)"),
    (b"\xfd7zXZ\0", "an xz file, perhaps a .tar.xz (unpack it with `tar xJf`)"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file, perhaps a .tar.zst (unpack it with `tar --zstd -xf`)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive (unpack it with `7z x`)"),
    (b"Rar!\x1a\x07", "a RAR archive (unpack it with `unrar x` or `7z x`)"),
)
_TAR_MAGIC = slice(257, 262)


def closed_archive_reason(path: Path, error: Exception) -> str:
    """Why a zip cannot be opened, and the remedy.

    Args:
        path: The file.
        error: What opening it as a zip raised.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"cannot read it ({error.strerror})"
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        tail = file.read(_TAIL_BYTES)
    if not head:
        return "an empty file instead of a zip; download it again"
    if is_lfs_pointer(head):
        return LFS_REMEDY
    if _WEB_PAGE.match(head):
        return "a web page instead of a zip (a login page, or an error?); download it again, logged in"
    for start, what in _OTHER_FORMATS:
        if head.startswith(start):
            return f"not a zip but {what}; move its images into images/, then remove this file"
    if head[_TAR_MAGIC] == b"ustar":
        return "not a zip but a tar (unpack it with `tar xf`); move its images into images/, then remove this file"
    if _ends_a_split_zip(tail) or head.startswith(_SPLIT_MARKER):
        return PART_OF_ZIP
    if head.isascii() and head.decode("ascii").replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return f"a text instead of a zip ({' '.join(head.decode('ascii').split())[:60]!r}); download it again"
    if isinstance(error, UnicodeDecodeError):
        return "a member's name is marked as UTF-8 and is not; unpack the zip with `unzip`, or pack it again"
    reason = " ".join(str(error).split())
    if _END_RECORD in tail:
        return f"a zip that Python cannot read ({reason}); test it with `unzip -t`, then unpack it or download it again"
    return f"not a complete zip ({reason}); download it again"


def is_part_of_zip(path: Path) -> bool:
    """Whether a file that opens as a zip is only the last of several parts: its first members are in other files."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return _ends_a_split_zip(file.read(_TAIL_BYTES))


def _ends_a_split_zip(tail: bytes) -> bool:
    """Whether the end record is that of a second or later part; every zip64 has 0xFFFF there."""
    place = tail.rfind(_END_RECORD)
    return place >= 0 and 0 < int.from_bytes(tail[place + 4 : place + 6], "little") < 0xFFFF


def loose_parts(path: Path) -> list[str]:
    """The names of a zip's parts where it was split and not joined: X.zip.001, X.zip.partaa, X.z01."""
    if not path.parent.is_dir():
        return []
    pattern = re.compile(rf"{re.escape(path.name)}\.(part)?(\d+|[a-z]{{2}})|{re.escape(path.stem)}\.z\d\d")
    return sorted(each.name for each in path.parent.iterdir() if pattern.fullmatch(each.name))
