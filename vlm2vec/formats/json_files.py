"""Reads and writes JSON files; checks size, encoding, types and bounds of files from untrusted sources."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from vlm2vec.errors import InputError
from vlm2vec.files import LFS_REMEDY, is_lfs_pointer

# Far above any configuration file; a larger file is something else and is not parsed.
MAX_JSON_BYTES = 1 << 26
_SHOWN_CHARACTERS = 60
CHECKSUM = "checksum"


class StrictModel(BaseModel):
    """A schema without conversions: no string is read as a number, no number as a bool."""

    model_config = ConfigDict(strict=True, frozen=True)


Schema = TypeVar("Schema", bound=BaseModel)
Value = TypeVar("Value")

# A count; the bound is far above any file or dataset, and sums of a few counts fit an int64.
Count = Annotated[int, Field(ge=0, le=1 << 50)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        InputError: The file is missing, unreadable, a Git LFS pointer, not UTF-8, or not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB; not a configuration file")
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
    """Checks the content of a JSON file against a schema.

    Args:
        schema: The expected schema.
        content: The content, see `read_json`.
        path: The file, for messages.

    Raises:
        InputError: A field is missing, or has a wrong type or a value out of bounds; the message names file and field.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_first_problem(error)}") from error


def parsed(schema: TypeAdapter[Value], data: bytes, name: str) -> Value:
    """Parses a JSON file into dataclasses, without conversions between types, as in a `StrictModel`.

    Args:
        schema: The expected schema.
        data: Content of the whole file.
        name: Name of the file, for messages.

    Raises:
        InputError: It is not JSON, or does not match the schema; see `checked`.
    """
    if len(data) > MAX_JSON_BYTES:
        raise InputError(f"{name}: more than {MAX_JSON_BYTES >> 20} MiB of JSON")
    try:
        return schema.validate_json(data, strict=True)
    except ValidationError as error:
        raise InputError(f"{name}: {_first_problem(error)}") from error


def write_json(path: Path, content: object) -> None:
    """Writes an indented JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Adds a checksum of the content to a JSON object, to detect edits that a schema cannot."""
    bare = {name: value for name, value in content.items() if name != CHECKSUM}
    return {**bare, CHECKSUM: hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()}


def without_checksum(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Checks and removes the checksum of `with_checksum`. Content without a checksum is accepted.

    Raises:
        InputError: The content was changed after it was written; the message names the file.
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
    # pydantic's names for the members of a union are not part of the file.
    field = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("constrained-", "list[")))
    if problem["type"] == "value_error":  # raised by the schema's validators, which name the field
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
