"""Shards behind a URL: range reads through fsspec, each piece kept in a folder that the node's processes share."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vlm2vec.errors import InputError

_ATTEMPTS = 5
_FIRST_PAUSE_SECONDS = 0.5  # doubled from one attempt to the next: a store may be away for 7 seconds
# At 25 ms a request, 16 at a time bring 590 photographs a second.
_REQUESTS_AT_A_TIME = 16
_LOCKS = 256
# The folder is looked through whenever a process has added this part of what it may hold.
_SWEEP_SHARE = 16

Value = TypeVar("Value")


def is_url(path: str | Path) -> bool:
    """Whether a path names a store rather than a folder."""
    return "://" in str(path)


def _default_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"vlm2vec-{os.getuid()}"


@dataclass(frozen=True)
class Cache:
    """Where pieces of remote shards are kept, and how much of them.

    Attributes:
        folder: On a local disk; shared by all processes of a node.
        max_bytes: The oldest pieces go when there is more.
    """

    folder: Path = field(default_factory=_default_folder)
    max_bytes: int = 50 * 10**9


class RemoteFiles:
    """Shards in a store.

    Connections belong to a process: a forked or pickled copy makes its own.

    Args:
        url: Of the shards' folder.
        cache: Where pieces are kept.
    """

    num_readers = _REQUESTS_AT_A_TIME

    def __init__(self, url: str, cache: Cache) -> None:
        self._url = url.rstrip("/")
        self._cache = cache
        self._connection: tuple[int, Any, str] | None = None
        self._added_bytes = 0
        self._folder = cache.folder / hashlib.sha256(self._url.encode()).hexdigest()[:16]
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InputError(f"--cache_dir {cache.folder}: cannot be made ({error.strerror})") from error
        if self._folder.stat().st_uid != os.getuid():
            raise InputError(f"--cache_dir {cache.folder}: belongs to another user; choose another")

    def place(self, name: str) -> str:
        """The file's URL."""
        return f"{self._url}/{name}"

    def size(self, name: str) -> int | None:
        """None: a request a shard would be slow, and every sample has a checksum."""
        return None

    def content(self, name: str) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: It is not there.
            InputError: The store does not answer.
        """
        filesystem, root = self._connected(name)
        content: bytes = self._tried(name, lambda: filesystem.cat_file(f"{root}/{name}"))
        return content

    def read(self, name: str, offset: int, size: int, block: tuple[int, int], version: str) -> bytes:
        """A part of a file, cut from its block, which is fetched if it is not in the cache.

        Raises:
            FileNotFoundError: The file is not there.
            InputError: The store does not answer, or sends something else.
        """
        start, end = block
        piece = self._folder / f"{name.replace('/', '-')}-{version}-{start}-{end}"
        part = _part_of(piece, end - start, offset - start, size)
        if part is not None:
            return part
        # Threads and processes that want the same piece wait for the first of them.
        lock = self._folder / f".lock-{zlib.crc32(piece.name.encode()) % _LOCKS}"
        with lock.open("w") as locked:
            fcntl.flock(locked, fcntl.LOCK_EX)
            part = _part_of(piece, end - start, offset - start, size)
            if part is None:
                content = self._fetched(name, start, end)
                self._keep(piece, content)
                part = content[offset - start : offset - start + size]
        return part

    def _fetched(self, name: str, start: int, end: int) -> bytes:
        filesystem, root = self._connected(name)
        content: bytes = self._tried(name, lambda: filesystem.cat_file(f"{root}/{name}", start=start, end=end))
        if len(content) > end - start:
            raise InputError(
                f"{self.place(name)}: the server does not answer range requests; copy the shards to a disk, or use one "
                "that does"
            )
        return content

    def _tried(self, name: str, request: Callable[[], Value]) -> Value:
        """The answer to a request, which is repeated while the store does not answer."""
        for attempt in range(_ATTEMPTS):
            try:
                return request()
            except FileNotFoundError:
                raise
            except Exception as error:  # every store's package has errors of its own
                failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if attempt < _ATTEMPTS - 1:
                time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt)
        raise InputError(f"{self.place(name)}: no answer after {_ATTEMPTS} attempts ({failure})")

    def _connected(self, name: str) -> tuple[Any, str]:
        if self._connection is None or self._connection[0] != os.getpid():
            try:
                import fsspec

                filesystem, root = fsspec.core.url_to_fs(self._url, skip_instance_cache=True)
            except (ImportError, ValueError) as error:
                raise InputError(
                    f"{self.place(name)}: cannot be opened ({error}); pip install 'vlm2vec-deepspeed[remote]' reads "
                    "http, other stores need their fsspec package, such as s3fs"
                ) from error
            self._connection = os.getpid(), filesystem, root.rstrip("/")
        return self._connection[1], self._connection[2]

    def _keep(self, piece: Path, content: bytes) -> None:
        temporary = piece.with_name(f".{piece.name}")  # of the one process and thread that holds the lock
        try:
            temporary.write_bytes(content)
            os.replace(temporary, piece)
        except OSError as error:
            raise InputError(f"--cache_dir {self._cache.folder}: cannot be written ({error.strerror})") from error
        self._added_bytes += len(content)
        if self._added_bytes > self._cache.max_bytes // _SWEEP_SHARE:
            self._added_bytes = 0
            self._sweep()

    def _sweep(self) -> None:
        """Removes the oldest pieces; other processes may do the same at the same time."""
        pieces = []
        for path in self._folder.glob("[!.]*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            pieces.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in pieces) - self._cache.max_bytes
        for _, size, path in sorted(pieces):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size

    def __reduce__(self) -> tuple[type[RemoteFiles], tuple[str, Cache]]:
        return RemoteFiles, (self._url, self._cache)


def _part_of(piece: Path, length: int, offset: int, size: int) -> bytes | None:
    """A part of a kept piece; None if the piece is not there, or torn."""
    try:
        with piece.open("rb", buffering=0) as kept:
            if os.fstat(kept.fileno()).st_size == length:
                return os.pread(kept.fileno(), size, offset)
    except FileNotFoundError:
        pass
    return None
