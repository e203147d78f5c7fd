"""Limits on the size at which a model sees images: names, bounds and flags. Each family supports some of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field, model_validator

from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import StrictModel
from vlm2vec.messages.words import counted

_DEFAULT = "If not given: the value that the model was saved with, else its processor's."

_MAX_PIXELS = 1 << 30
Pixels = Annotated[int, Field(ge=1, le=_MAX_PIXELS)]


class ImageLimits(StrictModel):
    """The limits as files store them; None if absent.

    Attributes:
        num_crops: Most local crops per image.
        min_pixels: Images with fewer pixels are enlarged to this number of pixels.
        max_pixels: Images with more pixels are shrunk to this number of pixels.
    """

    num_crops: Annotated[int, Field(ge=1, le=1024)] | None = None
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None

    @model_validator(mode="after")
    def _in_order(self) -> ImageLimits:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels is {self.min_pixels}, more than max_pixels {self.max_pixels}")
        return self


@dataclass(kw_only=True)
class ImageLimitFlags:
    """The limits as flags of a program; without a policy of its own, a flag decides the result."""

    num_crops: int | None = field(default=None, metadata={"help": f"Maximum number of crops per image. {_DEFAULT}"})
    min_pixels: int | None = field(
        default=None, metadata={"help": f"An image with fewer pixels is enlarged to this many. {_DEFAULT}"}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": f"An image with more pixels is reduced to this many. {_DEFAULT}"}
    )

    @property
    def image_limits(self) -> dict[str, int]:
        """The limits that were given."""
        return given_limits({name: getattr(self, name) for name in LIMITS})

    def refuse_impossible_limits(self) -> None:
        """Refuses values that no family supports.

        Raises:
            InputError: A flag is out of bounds; the message names the first one.
        """
        limits = self.image_limits
        for name, value in limits.items():
            if value < 1:
                raise InputError(f"--{name} {value}: must be 1 or more")
        low, high = limits.get("min_pixels", 1), limits.get("max_pixels", _MAX_PIXELS)
        if low > high:
            raise InputError(f"--min_pixels {low}: must not be more than --max_pixels {high}")


# The names of all limits.
LIMITS = tuple(ImageLimits.model_fields)

_RESIZING = "images keep their size; --num_crops limits an image's crops, or --max_pixels its pixels"
# Advice on flags of other programs, for programs that have these flags, and for data_prep.convert.
OLD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "image_resolution": _RESIZING,
        "resize_use_processor": "images are always resized as the model's family does; leave it out",
        "resize_min_pixels": "use --min_pixels",
        "resize_max_pixels": "use --max_pixels",
    }
)
OLD_NAMES_OF_CONVERSION: Mapping[str, str] = MappingProxyType(
    {
        "image_resolution": "shards hold images as they are; --num_crops or --max_pixels of vlm2vec.train limits them",
        **dict.fromkeys(LIMITS, "shards hold whole images; give it to vlm2vec.train"),
    }
)


def given_limits(limits: Mapping[str, int | None]) -> dict[str, int]:
    """The limits that are not None."""
    return {name: value for name, value in limits.items() if value is not None}


def refuse_limits(given: Collection[str], known: Collection[str], model_type: str, prefix: str = "") -> None:
    """Refuses limits that a family does not have.

    Args:
        given: Names of the given limits.
        known: Names of the family's limits.
        model_type: Name of the family.
        prefix: Prefix of a limit's name in messages: "--" in a program.

    Raises:
        InputError: The family does not have a limit.
    """
    for name in given:
        if name not in known:
            own = ", ".join(f"{prefix}{each}" for each in known)
            remedy = f"use {own}, or leave it out" if known else "leave it out"
            raise InputError(f"{prefix}{name}: a {model_type} has no such limit on its images; {remedy}")


def describe_limits(limits: Mapping[str, Any]) -> list[str]:
    """Limits as text, such as "4 crops" or "3,136 to 1,003,520 pixels"; None and absent ones are left out."""
    crops, low, high = (limits.get(name) for name in LIMITS)
    described = [] if crops is None else [counted(crops, "crop")]
    if low is not None and high is not None:
        described.append(f"{low:,} to {high:,} pixels")
    elif low is not None or high is not None:
        described.append(f"at least {low:,} pixels" if high is None else f"at most {high:,} pixels")
    return described
