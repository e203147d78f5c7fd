"""Where shards lie: a folder, or a store behind a URL (`vlm2vec.shards.remote`)."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

# A thousand shards must not exhaust a worker's file descriptors (often 1,024 a process).
MAX_OPEN_TARS = 64


class Storage(Protocol):
    """Reads files by their path relative to the shards' folder, such as "Photos/Photos-00000.tar".

    An `OSError` means that this file, or this part of it, cannot be read; where nothing can be reached at all, an
    `InputError` says so.
    """

    @property
    def num_readers(self) -> int:
        """How many reads may wait for an answer at a time."""

    def place(self, name: str) -> str:
        """What messages call a file."""

    def size(self, name: str) -> int | None:
        """A file's size in bytes; None where asking is not cheap."""

    def content(self, name: str) -> bytes:
        """A whole file."""

    def read(self, name: str, offset: int, size: int, block: tuple[int, int], version: str) -> bytes:
        """Part of a file; fewer bytes where it ends before.

        Args:
            name: the file.
            offset: of the first byte.
            size: number of bytes.
            block: start and end of what is read in one piece where single reads are dear; holds the part.
            version: tells this file from another one of the same name, at another time.
        """


class LocalFiles:
    """Shards in a folder. Reads are positioned, so forked processes may share descriptors; a copy opens its own.

    Args:
        root: the folder.
    """

    num_readers = 1

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open_tar = _tar_cache()

    def place(self, name: str) -> str:
        """The file's path."""
        return str(self._root / name)

    def size(self, name: str) -> int | None:
        """The file's size in bytes."""
        return (self._root / name).stat().st_size

    def content(self, name: str) -> bytes:
        """The whole file."""
        return (self._root / name).read_bytes()

    def read(self, name: str, offset: int, size: int, block: tuple[int, int], version: str) -> bytes:
        """One `pread`."""
        return os.pread(self._open_tar(str(self._root / name)).descriptor, size, offset)

    def __reduce__(self) -> tuple[type[LocalFiles], tuple[Path]]:
        return LocalFiles, (self._root,)


class _OpenTar:
    """A descriptor that closes when the last user lets go, so that no read can hit a closed or reused one."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _tar_cache() -> Callable[[str], _OpenTar]:
    return functools.lru_cache(maxsize=MAX_OPEN_TARS)(_OpenTar)
