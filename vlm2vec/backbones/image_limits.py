"""Limits on an image's size as a model sees it: their names, bounds and help texts. Each family has some of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import StrictModel

_DEFAULT = "; if not given, what the model was saved with, else what its processor says."

Pixels = Annotated[int, Field(ge=1, le=1 << 30)]


class ImageLimits(StrictModel):
    """The limits as files hold them; None: not said.

    Attributes:
        num_crops: At most this many local crops an image.
        min_pixels: An image of fewer pixels is enlarged to so many.
        max_pixels: An image of more pixels is shrunk to so many.
    """

    num_crops: Annotated[int, Field(ge=1, le=1024)] | None = None
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None


@dataclass(kw_only=True)
class ImageLimitFlags:
    """The limits as flags of a program."""

    num_crops: int | None = field(default=None, metadata={"help": f"Crops an image at most{_DEFAULT}"})
    min_pixels: int | None = field(
        default=None, metadata={"help": f"Pixels that a smaller image is enlarged to{_DEFAULT}"}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": f"Pixels that a larger image is shrunk to{_DEFAULT}"}
    )

    @property
    def image_limits(self) -> dict[str, int]:
        """Those that were given."""
        return given_limits({name: getattr(self, name) for name in LIMITS})


# The names of all limits.
LIMITS = tuple(ImageLimits.model_fields)


def given_limits(limits: Mapping[str, int | None]) -> dict[str, int]:
    """Those that are not None."""
    return {name: value for name, value in limits.items() if value is not None}


def refuse_limits(given: Collection[str], known: Collection[str], model_type: str) -> None:
    """Refuses limits that a family does not have.

    Args:
        given: Their names.
        known: The family's own.
        model_type: The family's name.

    Raises:
        InputError: One that it does not have.
    """
    for name in given:
        if name not in known:
            has = f"its images are limited by {', '.join(known)}" if known else "its images have no limits"
            raise InputError(f"{name}: a {model_type} has no such limit; {has}")
