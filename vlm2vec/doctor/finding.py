"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        status: `OK`, `WARN` (a run works, but worse or only in part) or `FAIL` (it would not).
        what: What was looked at, and what was seen.
        remedy: What to do about it; empty if nothing.
    """

    status: str
    what: str
    remedy: str = ""


def graded(value: float, what: str, remedy: str, fail_below: float, warn_below: float) -> Finding:
    """A figure that should be large enough."""
    if value >= warn_below:
        return Finding(OK, what)
    return Finding(FAIL if value < fail_below else WARN, what, remedy)
