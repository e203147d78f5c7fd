from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from vlm2vec.errors import InputError
from vlm2vec.images.decode import ImageHeader, open_image, read_header
from vlm2vec.images.metadata import without_metadata

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 13, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)
BOMB = zlib.compress(bytes(1 << 21))  # twice what Pillow unpacks of a text


def encoded(format_name: str, image: Image.Image = IMAGE, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def as_pillow_reads(data: bytes) -> npt.NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


PNG = encoded("PNG")
JPEG = encoded("JPEG")
GIF = encoded("GIF")
AFTER_HEADER, BEFORE_END = 33, len(PNG) - 12

CHUNKS = {
    "zTXt that unpacks to megabytes": chunk(b"zTXt", b"k\0\0" + BOMB),
    "iTXt that unpacks to megabytes": chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB),
    "zTXt of an unknown method": chunk(b"zTXt", b"k\0\7x"),
    "iCCP that unpacks to megabytes": chunk(b"iCCP", b"name\0\0" + BOMB),
    "iCCP that is empty": chunk(b"iCCP", b""),
    "iCCP without an end of its name": chunk(b"iCCP", b"x" * 90),
    "iCCP of an unknown method": chunk(b"iCCP", b"name\0\7x"),
    "eXIf that is none": chunk(b"eXIf", b"garbage"),
    "gAMA that is empty": chunk(b"gAMA", b""),
    "cHRM that is short": chunk(b"cHRM", b"abc"),
    "pHYs that is empty": chunk(b"pHYs", b""),
    "tRNS that is short": chunk(b"tRNS", b""),
    "acTL that is empty": chunk(b"acTL", b""),
    "fcTL of a frame outside": chunk(b"fcTL", b"\xff" * 26),
    "text with a wrong checksum": chunk(b"tEXt", b"k\0v", checksum=1),
    "private chunk with a wrong checksum": chunk(b"abCd", b"x", checksum=1),
    "type that is no text": chunk(b"\xff\xfe\1\2", b"x"),
}


@pytest.mark.parametrize("case", CHUNKS)
@pytest.mark.parametrize("place", [AFTER_HEADER, BEFORE_END])
def test_odd_chunks_leave_a_whole_png_readable(case: str, place: int) -> None:
    data = PNG[:place] + CHUNKS[case] + PNG[place:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(open_image(data)), PIXELS)
        assert read_header(data, "x") == ImageHeader("png", 13, 11)


@pytest.mark.parametrize(
    "end", [PNG[-12:] + b"garbage", b"", PNG[-12:-6], b"\x7f\xff\xff\xfftEXtabc", PNG[-12:-4] + b"crc?"]
)
def test_whatever_follows_the_pixels_of_a_png_is_passed_over(end: bytes) -> None:
    assert np.array_equal(np.asarray(open_image(PNG[:BEFORE_END] + end)), PIXELS)


def read_or_refused(data: bytes) -> bool:
    """Whether an image is read; if so, its pixels must be the undamaged ones."""
    try:
        image = open_image(data, "x.png")
    except InputError:
        return False
    assert np.array_equal(np.asarray(image), PIXELS)
    return True


def test_a_damaged_png_is_refused_or_read_to_its_pixels() -> None:
    """Pillow reads a flipped bit of uncompressed pixel data without an error."""
    stored = encoded("PNG", compress_level=0)
    data = stored[:AFTER_HEADER] + chunk(b"tEXt", b"key\0value") + stored[AFTER_HEADER:]
    text = range(AFTER_HEADER + 4, AFTER_HEADER + 12 + len(b"key\0value"))
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 0x10
        is_read = read_or_refused(bytes(flipped))
        assert is_read or place not in text or place == text[0]  # there a capital letter makes the chunk a critical one
        if AFTER_HEADER + 12 + 9 + 8 <= place < len(data) - 12:
            assert not is_read  # pixels and their checksum
    for length in range(len(data)):
        read_or_refused(data[:length])


def test_a_png_in_too_many_pieces_is_refused() -> None:
    with pytest.raises(InputError, match=r"x: damaged image .more than 262144 chunks"):
        open_image(PNG[:AFTER_HEADER] + chunk(b"abCd", b"") * 262_144 + PNG[AFTER_HEADER:], "x")


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


SEGMENTS = {
    "colour profile without a part number": segment(0xE2, b"ICC_PROFILE\0"),
    "EXIF that is none": segment(0xE1, b"Exif\0\0garbage"),
    "EXIF with 65,535 entries": segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\1" * 200),
    "list of further images that is none": segment(0xE2, b"MPF\0garbage"),
    "Photoshop block that ends early": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\xff\xff"),
    "Adobe segment that is short": segment(0xEE, b"Adobe"),
    "JFIF segment that is short": segment(0xE0, b"JFIF"),
    "comment that is no text": segment(0xFE, b"\xff\xfe"),
    "fill bytes": b"\xff\xff" + segment(0xFE, b""),
}


@pytest.mark.parametrize("case", SEGMENTS)
def test_odd_segments_leave_a_whole_jpeg_readable(case: str) -> None:
    data = JPEG[:2] + SEGMENTS[case] + JPEG[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(open_image(data)), as_pillow_reads(JPEG))
        assert read_header(data, "x") == ImageHeader("jpg", 13, 11)


BLOCKS = {
    "animation block that is short": b"!\xff\x0bNETSCAPE2.0\0",
    "graphic control that is short": b"!\xf9\1\0\0",
    "graphic control that is empty": b"!\xf9\0",
    "unknown block": b"!\x77\2zz\0",
    "comment": b"!\xfe\2hi\0",
}


@pytest.mark.parametrize("case", BLOCKS)
def test_odd_blocks_leave_a_whole_gif_readable(case: str) -> None:
    place = 13 + (6 << (GIF[10] & 7))
    data = GIF[:place] + BLOCKS[case] + GIF[place:]
    assert np.array_equal(np.asarray(open_image(data)), as_pillow_reads(GIF))


def small_frame_on_a_canvas() -> bytes:
    """A GIF whose image is smaller than its canvas: its graphic control decides the colour around it."""
    data = bytearray(encoded("GIF", IMAGE.quantize(4), transparency=2))
    data[6:10] = struct.pack("<HH", 30, 20)
    return bytes(data)


NICE: dict[str, Callable[[], bytes]] = {
    "palette, transparent colour": lambda: encoded("PNG", IMAGE.quantize(16), transparency=3),
    "palette, transparency by colour": lambda: encoded("PNG", IMAGE.quantize(16), transparency=bytes(range(16))),
    "RGB, transparent colour": lambda: encoded("PNG", transparency=(1, 2, 3)),
    "grey, transparent colour": lambda: encoded("PNG", IMAGE.convert("L"), transparency=7),
    "RGBA": lambda: encoded("PNG", IMAGE.convert("RGBA")),
    "gamma, resolution, text": lambda: encoded("PNG", dpi=(72, 72), icc_profile=b"profile"),
    "animated PNG": lambda: encoded("PNG", save_all=True, append_images=[IMAGE.rotate(180)]),
    "animated PNG, still in front": lambda: encoded(
        "PNG", save_all=True, append_images=[IMAGE.rotate(180)], default_image=True
    ),
    "CMYK": lambda: encoded("JPEG", IMAGE.convert("CMYK")),
    "JPEG in RGB": lambda: encoded("JPEG", keep_rgb=True),
    "JPEG with EXIF": lambda: encoded("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0", comment=b"hi"),
    "several JPEGs": lambda: encoded("MPO", save_all=True, append_images=[IMAGE.rotate(180)]),
    "GIF with transparency": lambda: encoded("GIF", IMAGE.quantize(4), transparency=2),
    "GIF, small image on a canvas": small_frame_on_a_canvas,
    "animated GIF": lambda: encoded("GIF", save_all=True, append_images=[IMAGE.rotate(180)], loop=3),
}


@pytest.mark.parametrize("case", NICE)
def test_pixels_are_those_of_the_whole_file(case: str) -> None:
    data = NICE[case]()
    assert np.array_equal(np.asarray(open_image(data)), as_pillow_reads(data))


def test_a_file_without_metadata_is_not_copied() -> None:
    for data in (PNG, encoded("WEBP"), encoded("BMP"), b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8"):
        assert without_metadata(data) == data
