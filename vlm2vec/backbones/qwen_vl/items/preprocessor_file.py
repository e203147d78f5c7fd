"""Reads preprocessor_config.json of the Qwen-VL families in every published form, and writes it as published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from vlm2vec.backbones.checkpoint import CONFIG_FILE
from vlm2vec.backbones.image_limits import Pixels, given_limits
from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.backbones.qwen_vl.items.formats import format_limits
from vlm2vec.backbones.qwen_vl.items.image_processor import MERGE_SIZE, NUM_FRAMES, ImageSettings
from vlm2vec.formats.json_files import StrictModel, checked, read_json

PREPROCESSOR_FILE = "preprocessor_config.json"

_Channel = Annotated[float, Field(ge=-1e3, le=1e3)]
_Scale = Annotated[float, Field(ge=1e-3, le=1e3)]
_THREE = Field(min_length=3, max_length=3)
_Side = Annotated[int, Field(ge=1, le=8192)]
_ONE_255TH = Field(ge=1 / 255 - 1e-9, le=1 / 255 + 1e-9)


class _Size(StrictModel):
    """Limits on the area in pixels, under all their names."""

    model_config = ConfigDict(extra="forbid")

    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    shortest_edge: Pixels | None = None
    longest_edge: Pixels | None = None


class PreprocessorFile(StrictModel):
    """Checked fields of the file; null means absent. Settings that this code does not support must be as published.

    Attributes:
        image_processor_type: Class in transformers, which must be a Qwen class.
        min_pixels, max_pixels, size: Limits on the area of a resized image; the first two take precedence.
        patch_size: Side of a patch in pixels.
        image_mean, image_std: Mean and standard deviation per channel, for values in 0..1.
        window_size: Side of Qwen2.5-VL's windows in pixels; used if there is no config.json (in an adapter).
        num_position_embeddings: Number of Qwen3-VL's learned positions; used if there is no config.json.
    """

    image_processor_type: Annotated[str, Field(pattern="^Qwen")] | None = None
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    size: _Size | None = None
    patch_size: _Side | None = None
    image_mean: Annotated[list[_Channel], _THREE] | None = None
    image_std: Annotated[list[_Scale], _THREE] | None = None
    window_size: _Side | None = None
    num_position_embeddings: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    merge_size: Literal[2] | None = None
    temporal_patch_size: Literal[2] | None = None
    do_resize: Literal[True] | None = None
    do_rescale: Literal[True] | None = None
    do_normalize: Literal[True] | None = None
    resample: Literal[3] | None = None
    rescale_factor: Annotated[float, _ONE_255TH] | None = None

    @classmethod
    def read(cls, folder: Path) -> PreprocessorFile:
        """Reads the file's settings; all are None if there is no file.

        Raises:
            InputError: The file is damaged, or a value is impossible.
        """
        file = folder / PREPROCESSOR_FILE
        return checked(cls, read_json(file), file) if file.is_file() else cls()

    @property
    def limits(self) -> dict[str, int]:
        """The limits on an image's pixels in the file."""
        size = self.size or _Size()
        return given_limits(
            {
                "min_pixels": _first(self.min_pixels, size.min_pixels, size.shortest_edge),
                "max_pixels": _first(self.max_pixels, size.max_pixels, size.longest_edge),
            }
        )


class VisionFields(StrictModel):
    """Fields of config.json's vision tower that preprocessing depends on; null means absent."""

    patch_size: _Side | None = None
    window_size: _Side | None = None
    num_position_embeddings: Annotated[int, Field(ge=1, le=1 << 20)] | None = None

    @classmethod
    def read(cls, folder: Path) -> VisionFields:
        """Reads the fields of a folder's config.json; all are None if there is no file.

        Raises:
            InputError: Damaged, or an impossible value.
        """
        file = folder / CONFIG_FILE
        if not file.is_file():
            return cls()
        return checked(_ModelFields, read_json(file), file).vision_config or cls()


class _ModelFields(StrictModel):
    vision_config: VisionFields | None = None


@dataclass(frozen=True)
class PublishedFile:
    """Settings in the published files of a family.

    Attributes:
        patch_size: Side of a patch in pixels.
        image_mean, image_std: Mean and standard deviation per channel.
        min_pixels, max_pixels: Limits of the Instruct models, which other published models of the family repeat.
        processor_class, image_processor_type: Classes in transformers.
        limits_as_edges: Whether limits are written as edges (their values are areas nevertheless).
        vision_field: See `QwenVLProcessor`. It is not in the published file, because config.json is next to it.
        table: Value of that field.
    """

    patch_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    min_pixels: int
    max_pixels: int
    processor_class: str
    image_processor_type: str
    limits_as_edges: bool = False
    vision_field: str = ""
    table: int = 0

    @property
    def limits(self) -> dict[str, int]:
        """Limits of the Instruct models by name."""
        return {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}

    def chosen_limits(self, file: PreprocessorFile) -> dict[str, int]:
        """The limits of a file, if they differ from those in all published files; otherwise empty."""
        limits = {**self.limits, **file.limits}
        return {} if limits == self.limits else limits

    def settings(
        self, file: PreprocessorFile, vision: VisionFields, prompt_format: PromptFormat, given: Mapping[str, int]
    ) -> ImageSettings:
        """Settings of preprocessing: given limits take precedence, then the files', then those of the format's code."""
        patch_size = vision.patch_size or file.patch_size or self.patch_size
        of_format = format_limits(prompt_format, MERGE_SIZE * patch_size)
        return ImageSettings(
            patch_size=patch_size,
            **{**self.limits, **of_format, **self.chosen_limits(file), **given},
            image_mean=tuple(file.image_mean or self.image_mean),
            image_std=tuple(file.image_std or self.image_std),
            resize=prompt_format.resize,
            over_white=prompt_format.transparency == "white",
        )

    def table_of(self, file: PreprocessorFile, vision: VisionFields) -> int:
        """Value of the field that the family's tower depends on; 0 if there is none."""
        field = self.vision_field
        return int(getattr(vision, field) or getattr(file, field) or self.table) if field else 0

    def content(self, settings: ImageSettings, table: int) -> dict[str, Any]:
        """Content of the file in the published form, plus `table` for folders without config.json."""
        limits: dict[str, Any] = {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}
        if self.limits_as_edges:
            limits = {"size": {"longest_edge": settings.max_pixels, "shortest_edge": settings.min_pixels}}
        return {
            **limits,
            "patch_size": settings.patch_size,
            "temporal_patch_size": NUM_FRAMES,
            "merge_size": MERGE_SIZE,
            "image_mean": list(settings.image_mean),
            "image_std": list(settings.image_std),
            "image_processor_type": self.image_processor_type,
            "processor_class": self.processor_class,
            **({self.vision_field: table} if self.vision_field else {}),
        }


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
