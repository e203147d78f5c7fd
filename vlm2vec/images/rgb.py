"""Converts decoded images of any mode to 8-bit RGB, for processors."""

from __future__ import annotations

from PIL import Image

from vlm2vec.errors import InputError
from vlm2vec.images.decode import check_size

_WHITE = (255, 255, 255)


def as_rgb(image: Image.Image, over_white: bool = False) -> Image.Image:
    """Converts an image to 8-bit RGB with Pillow's `convert("RGB")`, which drops alpha without blending.

    Args:
        image: An image of an 8-bit mode; an RGB image is returned as it is.
        over_white: Blend an RGBA image over white instead. Other modes with alpha are converted, as in the code of
            models that are trained this way.

    Raises:
        InputError: It is no PIL image, too large (`check_size`), of a mode with more than 8 bits, which `convert` would
            clip to white, or cannot be decoded because it is closed, truncated or damaged.
    """
    if not isinstance(image, Image.Image):
        raise InputError(f"an image must be a PIL image, not {type(image).__name__}; use Image.fromarray on arrays")
    if image.mode.startswith(("I", "F")):
        raise InputError(f"an image has {image.mode} pixels (more than 8 bits of grey); convert it to 8 bits")
    check_size(image.width, image.height, "an image")
    try:
        if over_white and image.mode == "RGBA":
            canvas = Image.new("RGB", image.size, _WHITE)
            canvas.paste(image, mask=image.getchannel("A"))
            return canvas
        if image.mode == "RGB":
            image.load()
            return image  # without the copy that `convert` would make
        return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise any type for damaged data
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"a PIL image of mode {image.mode} cannot be decoded, it may be closed, truncated or damaged ({reason})"
        ) from error
