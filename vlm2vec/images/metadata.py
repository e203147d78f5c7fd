"""Removes metadata from image files, so that damaged metadata cannot make an image unreadable.

Pillow parses texts, colour profiles, EXIF and the like when it opens a file, and refuses the whole image if one of
them is damaged or unpacks to megabytes. The bytes of the pixels are not changed.
"""

from __future__ import annotations

import zlib

from vlm2vec.errors import InputError

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that decide the pixels; a wrong checksum in one of them means damaged pixels.
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"IDAT"})
_PNG_END = b"IEND"
_CHUNK_FRAME = 12  # length, type and checksum of a chunk
# Enough for the largest image that is read, in chunks of 2 KiB; more chunks would only take time.
_MAX_PNG_CHUNKS = 1 << 18

_JPEG_START = b"\xff\xd8"
_START_OF_SCAN = 0xDA
_COMMENT = 0xFE
_APP0, _APP14, _APP15 = 0xE0, 0xEE, 0xEF
# These two segments define how colours are stored. Libjpeg ignores them if they are shorter than this.
_COLOUR_SEGMENTS = {_APP0: (b"JFIF\0", 14), _APP14: (b"Adobe", 12)}

_GIF_STARTS = (b"GIF87a", b"GIF89a")
_GIF_HEADER = 13
_GIF_EXTENSION = b"!"
# A graphic control block of the right size defines the colour around an image that is smaller than its canvas.
_GIF_GRAPHIC_CONTROL = b"!\xf9\x04"


def without_metadata(data: bytes) -> bytes:
    """Removes metadata from a PNG, JPEG or GIF; returns other files unchanged.

    Raises:
        InputError: A checksum shows that a PNG's pixels are damaged (Pillow does not compare them).
    """
    if data.startswith(_PNG_SIGNATURE):
        return _png_pixels(data)
    if data.startswith(_JPEG_START):
        return _jpeg_pixels(data)
    if data.startswith(_GIF_STARTS) and len(data) > _GIF_HEADER:
        return _gif_pixels(data)
    return data


def _png_pixels(data: bytes) -> bytes:
    """Drops ancillary chunks, and everything after the end (PNG specification, 5.3)."""
    kept: list[bytes] = [_PNG_SIGNATURE]
    place, num_chunks, dropped = len(_PNG_SIGNATURE), 0, False
    while place < len(data):
        num_chunks += 1
        if num_chunks > _MAX_PNG_CHUNKS:
            raise InputError(f"more than {_MAX_PNG_CHUNKS} chunks")
        kind = data[place + 4 : place + 8]
        end = place + _CHUNK_FRAME + int.from_bytes(data[place : place + 4], "big")
        if kind in _PNG_PIXELS and end <= len(data):
            checksum = int.from_bytes(data[end - 4 : end], "big")
            if zlib.crc32(memoryview(data)[place + 4 : end - 4]) != checksum:
                raise InputError(f"the checksum of its {kind.decode()} chunk at byte {place} is wrong")
        if _is_critical(kind):
            kept.append(data[place:end])
        else:
            dropped = True
        place = len(data) if kind == _PNG_END else end
    return b"".join(kept) if dropped else data


def _is_critical(kind: bytes) -> bool:
    """Whether the chunk is critical: its type starts with a capital letter."""
    return kind[:1].isupper()


def _jpeg_pixels(data: bytes) -> bytes:
    """Drops application segments and comments before the first scan (ITU T.81, B.1.1.4), except those about colours."""
    kept, place = [_JPEG_START], len(_JPEG_START)
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == _START_OF_SCAN or marker < 0xC0 or 0xD0 <= marker <= 0xD9:
            break
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if not (_APP0 <= marker <= _APP15 or marker == _COMMENT) or _is_about_colours(marker, data[place + 4 : end]):
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def _is_about_colours(marker: int, body: bytes) -> bool:
    start, length = _COLOUR_SEGMENTS.get(marker, (b"", 0))
    return bool(start) and body.startswith(start) and len(body) >= length


def _gif_pixels(data: bytes) -> bytes:
    """Drops the extension blocks before the first image (GIF89a, 23 to 26), except a whole graphic control block."""
    place = _GIF_HEADER
    if data[10] & 0x80:
        place += 6 << (data[10] & 7)  # the global colour table
    kept = [data[:place]]
    while data[place : place + 1] == _GIF_EXTENSION:
        end = place + 2
        while end < len(data) and data[end]:
            end += 1 + data[end]
        end += 1
        if data.startswith(_GIF_GRAPHIC_CONTROL, place):
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])
