"""Decoded images of any mode as 8-bit RGB, as processors take them."""

from __future__ import annotations

from PIL import Image

from vlm2vec.errors import InputError
from vlm2vec.images.decode import check_size

_WHITE = (255, 255, 255)


def as_rgb(image: Image.Image, over_white: bool = False) -> Image.Image:
    """The image as 8-bit RGB by Pillow's `convert("RGB")`, which drops alpha without blending.

    Args:
        image: Of an 8-bit mode; one of mode RGB is returned itself.
        over_white: Blend an RGBA image over white instead. Other modes with alpha are converted, as in the code
            of the models that are trained so.

    Raises:
        InputError: Not a PIL image, too large (`check_size`), a mode of more than 8 bits, which `convert` would clip to
            white, or an image that cannot be decoded (any more): closed, truncated or damaged.
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
            return image  # `convert` would copy it
        return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever the damage happens to trigger
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"a PIL image of mode {image.mode} cannot be decoded, it may be closed, truncated or damaged ({reason})"
        ) from error
