"""Storage of shards: the interface, and its version for a local folder (for URLs: `vlm2vec.shards.remote`)."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

# A thousand shards must not exhaust a worker's file descriptors (often 1,024 per process).
MAX_OPEN_TARS = 64


class Storage(Protocol):
    """Reads files by their path relative to the shards' folder, such as "Photos/Photos-00000.tar".

    An `OSError` means that this file, or this part of it, cannot be read; an `InputError` means that the storage cannot
    be reached.
    """

    @property
    def num_readers(self) -> int:
        """Number of concurrent reads."""

    def place(self, name: str) -> str:
        """Path or URL of a file, for messages."""

    def size(self, name: str) -> int | None:
        """A file's size in bytes; None if asking is slow."""

    def content(self, name: str) -> bytes:
        """Reads a whole file."""

    def read(self, name: str, offset: int, size: int, block: tuple[int, int], version: str) -> bytes:
        """Reads a part of a file; returns fewer bytes if the file ends before.

        Args:
            name: The file.
            offset: Offset of the first byte.
            size: Number of bytes.
            block: Start and end of the piece to read, which contains the part, if single reads are expensive.
            version: Distinguishes this file from earlier or later files of the same name.
        """


class LocalFiles:
    """Shards in a local folder. Reads are positioned, so forked processes may share descriptors; copies open new ones.

    Args:
        root: The folder.
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
        """Reads a whole file."""
        return (self._root / name).read_bytes()

    def read(self, name: str, offset: int, size: int, block: tuple[int, int], version: str) -> bytes:
        """Reads a part of a file with one `pread`."""
        return os.pread(self._open_tar(str(self._root / name)).descriptor, size, offset)

    def __reduce__(self) -> tuple[type[LocalFiles], tuple[Path]]:
        return LocalFiles, (self._root,)


class _OpenTar:
    """A file descriptor that closes after its last use, so that no read can hit a closed or reused one."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _tar_cache() -> Callable[[str], _OpenTar]:
    return functools.lru_cache(maxsize=MAX_OPEN_TARS)(_OpenTar)
