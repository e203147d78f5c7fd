"""Decodes image bytes, by the same rules for the converter, the loader and the encoder."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from vlm2vec.errors import InputError
from vlm2vec.files import LFS_REMEDY, is_lfs_pointer
from vlm2vec.images.metadata import without_metadata

# Pillow's own limit (a quarter of a gigabyte as RGB). Pillow merely warns above it and refuses at twice the number;
# here it is a hard limit, kept even if a program lifts Pillow's.
MAX_IMAGE_PIXELS = 89_478_485
# The longest side that a JPEG can have. PNG and BMP can state a side of millions of pixels; such a strip is no image.
MAX_IMAGE_SIDE = 65_535
# Twice the size of this many uncompressed pixels: a larger file is no image, and is not read into memory.
MAX_IMAGE_BYTES = 1 << 29

_EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG followed by further images, as some phones write it; the first image is used
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
}
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_REMEDY = "replace or remove the file"


@dataclass(frozen=True)
class ImageHeader:
    """Format, as a file extension ("jpg", "png", "webp", "gif", "bmp"), and size in pixels of an image."""

    extension: str
    width: int
    height: int


def read_header(data: bytes, name: str) -> ImageHeader:
    """Reads format and size from an image's bytes without decoding its pixels; the file name is not trusted.

    Args:
        data: Content of the whole file (only the header is parsed).
        name: Name of the image in error messages, usually its path.

    Raises:
        InputError: It is no image, its format is not JPEG, PNG, WebP, GIF or BMP, or it is too large (see
            `check_size`).
    """
    with _open(data, name) as image:
        return ImageHeader(_EXTENSIONS[str(image.format)], image.width, image.height)


def open_image(source: bytes | str | Path, name: str | None = None, keep_alpha: bool = False) -> Image.Image:
    """Decodes an image completely and returns it as 8-bit RGB, by the rules of the original's `convert("RGB")`.

    Alpha is dropped without blending, an animation is its first frame, EXIF orientation is not applied.

    Args:
        source: The file's bytes, or its path.
        name: Name of the image in error messages; the path, or "<bytes>", if not given.
        keep_alpha: Return an RGBA image as it is; other modes are still converted to RGB.

    Raises:
        InputError: The file is unreadable, no image, of an unknown format, truncated or damaged, has more than
            `MAX_IMAGE_PIXELS` pixels or a side over `MAX_IMAGE_SIDE`, or is 16-bit grey (which `convert("RGB")` would
            clip to white).
    """
    if isinstance(source, bytes):
        data, name = source, name or "<bytes>"
    else:
        name = name or str(source)
        data = _read_file(source, name)
    with _open(data, name) as image:
        return _decoded(image, name, keep_alpha)


def check_image(data: bytes, name: str) -> ImageHeader:
    """Checks that `open_image` can decode an image, by decoding it completely, which alone detects a truncated JPEG.

    Raises:
        InputError: See `open_image`.
    """
    with _open(data, name) as image:
        header = ImageHeader(_EXTENSIONS[str(image.format)], image.width, image.height)
        _decoded(image, name)
    return header


def _decoded(image: Image.Image, name: str, keep_alpha: bool = False) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{name}: {image.mode} pixels (more than 8 bits of grey); convert the image to 8 bits")
    try:
        image.load()
        as_it_is = image.mode == "RGB" or (keep_alpha and image.mode == "RGBA")
        return image if as_it_is else image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise any type for damaged data
        raise InputError(f"{name}: damaged or truncated image ({_one_line(error)}); {_REMEDY}") from error


def _read_file(path: str | Path, name: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{name}: cannot read the image ({_one_line(error)})") from error


def _open(data: bytes, name: str) -> Image.Image:
    """Opens an image lazily: parses the header, does not decode pixels."""
    if not data:
        raise InputError(f"{name}: empty file instead of an image; {_REMEDY}")
    if is_lfs_pointer(data):
        raise InputError(f"{name}: {LFS_REMEDY}")
    try:
        image = Image.open(io.BytesIO(without_metadata(data)), formats=_FORMATS)
    except InputError as error:
        raise InputError(f"{name}: damaged image ({error}); {_REMEDY}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name}: more than {MAX_IMAGE_PIXELS} pixels; scale the image down") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a JPEG, PNG, WebP, GIF or BMP image; {_REMEDY}") from error
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(f"{name}: damaged image header ({_one_line(error)}); {_REMEDY}") from error
    check_size(image.width, image.height, name)
    return image


def check_size(width: int, height: int, name: str) -> None:
    """Refuses an image by its stated size, before memory is allocated for it.

    Raises:
        InputError: It has more than `MAX_IMAGE_PIXELS` pixels or a side over `MAX_IMAGE_SIDE`.
    """
    if width * height > MAX_IMAGE_PIXELS:
        raise InputError(f"{name}: {width} x {height} is more than {MAX_IMAGE_PIXELS} pixels; scale the image down")
    if max(width, height) > MAX_IMAGE_SIDE:
        raise InputError(
            f"{name}: {width} x {height} has a side of more than {MAX_IMAGE_SIDE} pixels; scale the image down"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
