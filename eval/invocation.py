"""`scored_by.json`: when, by which command and on what a run was scored.

It is a separate file, so that all other files of two equal runs are equal bit for bit.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, field_validator

import vlm2vec
from vlm2vec import __version__
from vlm2vec.device import describe_device
from vlm2vec.errors import InputError
from vlm2vec.files import committed
from vlm2vec.formats.json_files import (
    Count,
    StrictModel,
    checked,
    read_json,
    with_checksum,
    without_checksum,
    write_json,
)
from vlm2vec.messages.words import counted
from vlm2vec.ranks import world_size

CALLS_FILE = "scored_by.json"
_HIDDEN = "HIDDEN"
# Values that give access to something: tokens of the Hugging Face hub, passwords and signatures in URLs.
_SECRETS = (
    (re.compile(r"\bhf_\w+"), _HIDDEN),
    (re.compile(r"(://)[^/\s@]+@"), rf"\1{_HIDDEN}@"),
    (re.compile(r"(://[^\s?]+\?)\S+"), rf"\1{_HIDDEN}"),
)
_SECRET_FLAG = re.compile(r"--\w*(?:token|password|secret|api_key)")
_NOT_PASSED_ON = "--local_rank"
_GIT_SECONDS = 20


class Invocation(StrictModel):
    """One call of `eval.mmeb` or `eval.retrieval`.

    Attributes:
        finished: UTC, ISO 8601, to the second.
        command: The command line, without secrets and without what launchers add.
        version: The package's version.
        commit: The commit of the code's checkout, with " and changes" if files differ from it; None: installed
            without one.
        device: The first rank's device.
        num_ranks: Number of ranks.
        seconds: Time from the start of the program to its last file.
        num_encoded: Number of items that this call encoded; others were encoded by an earlier one.
        datasets: The datasets that it scored and no later call scored again.
    """

    finished: str
    command: str
    version: str
    commit: str | None
    device: str
    num_ranks: Annotated[Count, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    num_encoded: Count
    datasets: list[str]

    @field_validator("finished")
    @classmethod
    def _is_time(cls, value: str) -> str:
        datetime.fromisoformat(value)
        return value

    @property
    def date(self) -> str:
        """The time for people, to the minute."""
        return f"{datetime.fromisoformat(self.finished).astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"

    @property
    def source(self) -> str:
        """Version and commit for people."""
        return f"vlm2vec {self.version}" + (f", commit {self.commit}" if self.commit else "")

    @property
    def work(self) -> str:
        """Time, device and items for people."""
        ranks = f"{self.num_ranks} ranks on " if self.num_ranks > 1 else ""
        return f"{duration(self.seconds)}, {ranks}{self.device}, {counted(self.num_encoded, 'item')} encoded"


class _RunFile(StrictModel):
    calls: Annotated[list[Invocation], Field(min_length=1)]


@dataclass(frozen=True)
class Started:
    """A call in progress.

    Attributes:
        command: See `Invocation`.
        at: On the monotonic clock, seconds.
    """

    command: str
    at: float

    @staticmethod
    def now(program: str, argv: Sequence[str] | None) -> Started:
        """Takes the time.

        Args:
            program: The module, such as "eval.mmeb".
            argv: Its arguments; `sys.argv` if None.
        """
        return Started(command_line(program, sys.argv[1:] if argv is None else argv), time.monotonic())

    def record(self, folder: Path, device: torch.device, num_encoded: int, datasets: Collection[str]) -> None:
        """Adds this call to the folder's `scored_by.json`, unless it only repeats one and encoded nothing; on rank 0.

        Args:
            folder: Of the run.
            device: Of this rank.
            num_encoded: Items that this call encoded.
            datasets: What it scored: earlier calls are kept for others only.

        Raises:
            InputError: The file cannot be written.
        """
        call = Invocation(
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=self.command,
            version=__version__,
            commit=source_commit(),
            device=describe_device(device, "", "").device,
            num_ranks=world_size(),
            seconds=round(time.monotonic() - self.at, 1),
            num_encoded=num_encoded,
            datasets=list(datasets),
        )
        earlier = read_invocations(folder)
        if not num_encoded and any(
            each.command == call.command and set(datasets) <= {*each.datasets} for each in earlier
        ):
            return
        calls = [*_without(earlier, datasets), call]
        path = folder / CALLS_FILE
        try:
            with committed(path) as temporary:
                write_json(temporary, with_checksum(_RunFile(calls=calls).model_dump()))
        except OSError as error:
            raise InputError(f"{path}: cannot write it ({error.strerror})") from error


def read_invocations(folder: Path) -> list[Invocation]:
    """The calls that scored a run, the last one last; none for a run of an older version.

    Raises:
        InputError: The file is damaged, or not in the programs' format.
    """
    path = folder / CALLS_FILE
    if not path.is_file():
        return []
    try:
        return checked(_RunFile, without_checksum(read_json(path), path), path).calls
    except InputError as error:
        raise InputError(f"{error}; delete this file: scores do not depend on it") from error


def describe_calls(calls: Sequence[Invocation]) -> list[str]:
    """One line per call that scored a run."""
    return [
        f"scored{scored_part(call, calls)} {call.date} by {call.source} in {call.work}: {call.command}"
        for call in calls
    ]


def scored_part(call: Invocation, calls: Sequence[Invocation]) -> str:
    """The datasets that a call scored, if other calls scored the rest."""
    return f" {', '.join(call.datasets)}" if len(calls) > 1 else ""


def _without(calls: Sequence[Invocation], datasets: Collection[str]) -> list[Invocation]:
    """Earlier calls, without the datasets that are scored again."""
    left = [(call, [name for name in call.datasets if name not in datasets]) for call in calls]
    return [call.model_copy(update={"datasets": names}) for call, names in left if names]


def command_line(program: str, words: Sequence[str]) -> str:
    """A program's command line as one would type it, without secrets and without what launchers add."""
    shown: list[str] = []
    hides_next = skips_next = False
    for word in words:
        flag, has_value, _ = word.partition("=")
        if skips_next or flag == _NOT_PASSED_ON:
            skips_next = not skips_next and not has_value
            continue
        if _SECRET_FLAG.fullmatch(flag) and has_value:
            word = f"{flag}={_HIDDEN}"
        shown.append(_HIDDEN if hides_next else _masked(word))
        hides_next = bool(_SECRET_FLAG.fullmatch(word))
    return f"python -m {program} {' '.join(_quoted(word) for word in shown)}".rstrip()


def _quoted(word: str) -> str:
    """A word as bash reads it, on one line."""
    if "\n" not in word:
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"$'{escaped}'"


def _masked(word: str) -> str:
    for pattern, instead in _SECRETS:
        word = pattern.sub(instead, word)
    return word


def duration(seconds: float) -> str:
    """A duration for people: "4.2 s", "3 min 5 s", "2 h 3 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@cache
def source_commit() -> str | None:
    """The commit of the checkout that this package runs from; None without one, or without git."""
    root = Path(vlm2vec.__file__).parents[1]
    if not (root / ".git").exists():  # an installed package may lie inside another project's checkout
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + (" and changes" if changed else "")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=_GIT_SECONDS
    )
    return done.stdout.strip()
