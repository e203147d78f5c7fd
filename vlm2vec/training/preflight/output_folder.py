"""Startup check: every rank must see the same output folder and be able to write to it."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path

import torch.distributed as dist

from vlm2vec.errors import InputError
from vlm2vec.files import TEMPORARY_PREFIX
from vlm2vec.ranks import on_first_rank, refuse_together

# A network file system's clients may cache a folder's content for several seconds.
SECONDS_TO_SEE = 15.0


def check_output_folder(output_dir: Path, seconds: float = SECONDS_TO_SEE) -> None:
    """Stops all ranks if one of them does not share the first rank's output folder (a collective).

    Every rank writes its part of a checkpoint there; without a shared folder no checkpoint would be complete.

    Args:
        output_dir: The run's folder; created if it does not exist.
        seconds: How long a rank waits for the first rank's file to appear.

    Raises:
        InputError: On the first rank; it names the ranks and their hosts.
        SystemExit: On the others.
    """
    token = output_dir / on_first_rank(lambda: _write_token(output_dir))
    try:
        refuse_together(_problem(token, seconds))
    finally:
        if dist.get_rank() == 0:
            token.unlink(missing_ok=True)


def _write_token(output_dir: Path) -> str:
    name = f"{TEMPORARY_PREFIX}shared-{uuid.uuid4().hex}"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / name).touch()
    except OSError as error:
        raise InputError(f"--output_dir {output_dir}: cannot be written to ({error.strerror or error})") from error
    return name


def _problem(token: Path, seconds: float) -> str | None:
    """What is wrong with the folder on this rank; None if nothing."""
    host, folder = socket.gethostname(), token.parent
    deadline = time.monotonic() + seconds
    while not _is_there(token):
        if time.monotonic() > deadline:
            return (
                f"{host} does not see in --output_dir {folder} what rank 0 writes there; use a folder on a file system "
                "that all nodes share"
            )
        time.sleep(0.1)
    own = token.with_name(f"{token.name}-{dist.get_rank()}")
    try:
        own.touch()
        own.unlink()
    except OSError as error:
        return f"{host} cannot write to --output_dir {folder} ({error.strerror or error})"
    return None


def _is_there(token: Path) -> bool:
    """Looks for a file by listing its folder: clients cache the look-up of a single name for longer."""
    try:
        return token.name in os.listdir(token.parent)
    except OSError:
        return False
