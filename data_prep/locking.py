"""A lock on an output folder, so that only one program at a time writes to it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm2vec.errors import InputError

# Seconds to wait for the lock: workers of a killed run end within moments, a different run does not.
_LOCK_SECONDS = 5.0


@contextmanager
def locked(output_dir: Path, taken: str) -> Iterator[None]:
    """Creates a folder and locks it against other programs until this one and all its workers have ended.

    Args:
        output_dir: The folder.
        taken: The message if another program holds the lock.

    Raises:
        InputError: Another program holds the lock, or the folder cannot be created.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"{output_dir}: cannot create the folder ({error.strerror})") from error
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise InputError(f"{output_dir}: {taken}") from error
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
