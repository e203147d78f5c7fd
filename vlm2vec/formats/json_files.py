"""JSON files that others may have written: read with their size, encoding, types and bounds checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from vlm2vec.errors import InputError
from vlm2vec.files import LFS_REMEDY, is_lfs_pointer

# No configuration comes near; a larger file is something else and is not parsed.
MAX_JSON_BYTES = 1 << 26
_SHOWN_CHARACTERS = 60
CHECKSUM = "checksum"


class StrictModel(BaseModel):
    """A schema whose fields are taken as they are: no string is read as a number, no number as a bool."""

    model_config = ConfigDict(strict=True, frozen=True)


Schema = TypeVar("Schema", bound=BaseModel)
Value = TypeVar("Value")

# How many of something; no file or data set comes near the bound, and sums of a few fit an int64.
Count = Annotated[int, Field(ge=0, le=1 << 50)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: Missing, unreadable, a Git LFS pointer, not UTF-8, or not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: more than {MAX_JSON_BYTES >> 20} MiB; not a configuration file")
        data = path.read_bytes()
        if is_lfs_pointer(data):
            raise InputError(f"{path}: {LFS_REMEDY}")
        content = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, not {shorten(content)}")
    return content


def checked(schema: type[Schema], content: dict[str, Any], path: Path | str) -> Schema:
    """The content of a JSON file as a schema has it.

    Args:
        schema: What is expected.
        content: See `read_json`.
        path: The file, for messages.

    Raises:
        InputError: A field is missing, or has another type or a value out of bounds; the message names file and field.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_first_problem(error)}") from error


def parsed(schema: TypeAdapter[Value], data: bytes, name: str) -> Value:
    """The content of a JSON file as dataclasses; types are taken as they are, as in a `StrictModel`.

    Args:
        schema: What is expected.
        data: The whole file.
        name: The file, for messages.

    Raises:
        InputError: Not JSON; or as `checked`.
    """
    if len(data) > MAX_JSON_BYTES:
        raise InputError(f"{name}: more than {MAX_JSON_BYTES >> 20} MiB of JSON")
    try:
        return schema.validate_json(data, strict=True)
    except ValidationError as error:
        raise InputError(f"{name}: {_first_problem(error)}") from error


def write_json(path: Path, content: object) -> None:
    """Writes a JSON file as people read it."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of everything else in it, for values that no schema could tell from others."""
    bare = {name: value for name, value in content.items() if name != CHECKSUM}
    return {**bare, CHECKSUM: hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()}


def without_checksum(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The content that `with_checksum` was given. A file without a checksum is taken as it is.

    Raises:
        InputError: Something was changed since; the message names the file.
    """
    if CHECKSUM in content and with_checksum(content) != content:
        raise InputError(f"{path}: changed after it was written (its checksum differs)")
    return {name: value for name, value in content.items() if name != CHECKSUM}


def shorten(value: object) -> str:
    """A value for a message, in one short line."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _first_problem(error: ValidationError) -> str:
    """The first of the problems that pydantic found, in one line."""
    problem = error.errors(include_url=False)[0]
    # A member of a union is no part of the file.
    field = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("constrained-", "list[")))
    if problem["type"] == "value_error":  # raised by the schema itself, which names its fields
        return str(problem["ctx"]["error"])
    if problem["type"] == "missing":
        return f"{field} is missing"
    if problem["type"] == "json_invalid":
        return " ".join(f"cannot be read as JSON ({problem['msg']})".split())
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{field} is not a setting that this version knows; it may have been written by a newer one"
    if problem["type"] == "value_error":  # a schema's own words
        return (f"{field}: " if field else "") + problem["msg"].removeprefix("Value error, ")
    message = problem["msg"][:1].lower() + problem["msg"][1:]
    return f"{field or 'the content'} is {shorten(problem['input'])}; {message}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")
