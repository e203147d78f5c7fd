from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from data_prep.sniff import sniff_header
from vlm2vec.errors import InputError
from vlm2vec.images.decode import MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE, ImageHeader, check_image, open_image, read_header

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (23, 31, 3), dtype=np.uint8)


def encoded(format_name: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, format_name, **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few dozen bytes whose header promises a huge image."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("format_name", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp")]
)
def test_header_is_sniffed_for_every_known_format(format_name: str, extension: str) -> None:
    assert read_header(encoded(format_name), "misnamed.txt") == ImageHeader(extension, 31, 23)


@pytest.mark.parametrize("format_name", ["PNG", "BMP"])
def test_lossless_formats_give_the_exact_pixels_from_bytes_and_from_a_path(format_name: str, tmp_path: Path) -> None:
    data = encoded(format_name)
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        image = open_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize(
    ("format_name", "mode"), [("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "1"), ("PNG", "LA"), ("PNG", "P"), ("GIF", "P")]
)
def test_every_8_bit_mode_becomes_rgb(format_name: str, mode: str) -> None:
    image = open_image(encoded(format_name, mode))
    assert (image.mode, image.size) == ("RGB", (31, 23))


def test_alpha_is_dropped_without_blending() -> None:
    rgba = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG")
    assert np.array_equal(np.asarray(open_image(buffer.getvalue())), PIXELS)


def test_alpha_is_kept_where_it_is_asked_for() -> None:
    """Of RGBA alone, as qwen_vl_utils blends no other mode."""
    rgba = Image.fromarray(np.dstack([PIXELS, PIXELS[..., :1]]))
    buffer = io.BytesIO()
    rgba.save(buffer, "PNG")
    kept = open_image(buffer.getvalue(), keep_alpha=True)
    assert kept.mode == "RGBA"
    assert np.array_equal(np.asarray(kept), np.asarray(rgba))
    for mode in ("LA", "P", "L"):
        assert open_image(encoded("PNG", mode), keep_alpha=True).mode == "RGB"


def test_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert open_image(buffer.getvalue()).getpixel((4, 4)) == (255, 0, 0)


def test_exif_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = open_image(encoded("JPEG", exif=exif))
    assert image.size == (31, 23)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_truncated_image_is_named(format_name: str) -> None:
    data = encoded(format_name)
    with pytest.raises(InputError, match=r"^half\.bin: damaged"):
        open_image(data[: len(data) // 2], "half.bin")


def test_damaged_png_checksum_is_found() -> None:
    data = bytearray(encoded("PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(InputError, match=r"^bits\.png: "):
        open_image(bytes(data), "bits.png")


@pytest.mark.parametrize(
    "data", [b"", b"<html>404</html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP"]
)
def test_what_is_no_image_is_named_on_one_line(data: bytes) -> None:
    for reader in (read_header, open_image):
        with pytest.raises(InputError, match=r"^photo\.jpg: ") as caught:
            reader(data, "photo.jpg")
        assert "\n" not in str(caught.value)


def test_known_to_pillow_but_not_to_us() -> None:
    with pytest.raises(InputError, match="not a JPEG"):
        open_image(encoded("TIFF"), "scan.tif")


@pytest.mark.parametrize("size", [(9_500, 9_500), (30_000, 30_000)])
@pytest.mark.parametrize("action", ["ignore", "error"])
def test_the_pixel_limit_applies_whatever_pillow_is_set_to(
    size: tuple[int, int], action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert size[0] * size[1] > MAX_IMAGE_PIXELS
    for limit in (Image.MAX_IMAGE_PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for reader in (read_header, open_image):
            with warnings.catch_warnings():
                warnings.simplefilter(action)  # type: ignore[arg-type]
                with pytest.raises(InputError, match=r"bomb\.png: .*pixels"):
                    reader(png_that_claims(*size), "bomb.png")


@pytest.mark.parametrize("size", [(1, MAX_IMAGE_PIXELS), (MAX_IMAGE_PIXELS, 1), (MAX_IMAGE_SIDE + 1, 100)])
def test_strips_of_millions_of_pixels_are_refused_before_they_are_decoded(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("memory was allocated"))
        for reader in (read_header, check_image, open_image, sniff_header):
            message = rf"strip\.png: {size[0]} x {size[1]} has a side of more than 65535"
            with pytest.raises(InputError, match=message) as caught:
                reader(png_that_claims(*size), "strip.png")
            assert "\n" not in str(caught.value)
    longest = Image.new("L", (MAX_IMAGE_SIDE, 1))
    buffer = io.BytesIO()
    longest.save(buffer, "PNG")
    assert open_image(buffer.getvalue()).size == longest.size


def test_16_bit_grey_is_refused_instead_of_clipped_to_white() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(buffer, "PNG")
    assert read_header(buffer.getvalue(), "depth.png") == ImageHeader("png", 4, 4)
    with pytest.raises(InputError, match=r"depth\.png: .*8 bits"):
        open_image(buffer.getvalue(), "depth.png")


def test_unreadable_paths_are_input_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jpg", tmp_path, "nul\0byte.jpg"):
        with pytest.raises(InputError, match="cannot read"):
            open_image(path)
