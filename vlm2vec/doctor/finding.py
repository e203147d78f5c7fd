"""The result of a check: status, observation, remedy."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        status: `OK`, `WARN` (a run works, but slower or only in part) or `FAIL` (a run would fail).
        what: What was checked and what was found.
        remedy: What to do about it; empty if nothing.
    """

    status: str
    what: str
    remedy: str = ""


def graded(value: float, what: str, remedy: str, fail_below: float, warn_below: float) -> Finding:
    """Grades a value that should be large enough."""
    if value >= warn_below:
        return Finding(OK, what)
    return Finding(FAIL if value < fail_below else WARN, what, remedy)
