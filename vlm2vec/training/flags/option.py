"""A flag as a dataclass field: its default and its help text."""

from __future__ import annotations

import dataclasses
from typing import Any


def option(default: Any, text: str) -> Any:
    """A field whose docstring is the flag's help."""
    return dataclasses.field(default=default, metadata={"help": text})
