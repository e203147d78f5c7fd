"""Reads shards behind a URL by range requests through fsspec, with a cache folder that a node's processes share."""

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
_FIRST_PAUSE_SECONDS = 0.5  # doubled after every attempt, so a store may be unreachable for 7 seconds
# With 25 ms per request, 16 concurrent requests read 590 photographs per second.
_REQUESTS_AT_A_TIME = 16
_LOCKS = 256
# Old pieces are evicted whenever a process has added this fraction (1 / 16) of the size limit.
_SWEEP_SHARE = 16

Value = TypeVar("Value")


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL."""
    return "://" in str(path)


def _default_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"vlm2vec-{os.getuid()}"


@dataclass(frozen=True)
class Cache:
    """Cache of pieces of remote shards.

    Attributes:
        folder: Folder on a local disk, shared by all processes of a node.
        max_bytes: Size limit in bytes; the oldest pieces are evicted first.
    """

    folder: Path = field(default_factory=_default_folder)
    max_bytes: int = 50 * 10**9


class RemoteFiles:
    """Files of shards behind a URL.

    Connections are per process: a forked or pickled copy opens new ones.

    Args:
        url: URL of the shards' folder.
        cache: Cache of pieces.
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
            raise InputError(f"--cache_dir {cache.folder}: cannot be created ({error.strerror})") from error
        if self._folder.stat().st_uid != os.getuid():
            raise InputError(f"--cache_dir {cache.folder}: belongs to a different user; choose a different folder")

    def place(self, name: str) -> str:
        """The file's URL."""
        return f"{self._url}/{name}"

    def size(self, name: str) -> int | None:
        """Returns None: one request per shard would be slow, and every sample has a checksum."""
        return None

    def content(self, name: str) -> bytes:
        """Reads a whole file.

        Raises:
            FileNotFoundError: The file does not exist.
            InputError: The store does not answer.
        """
        filesystem, root = self._connected(name)
        content: bytes = self._tried(name, lambda: filesystem.cat_file(f"{root}/{name}"))
        return content

    def read(self, name: str, offset: int, size: int, block: tuple[int, int], version: str) -> bytes:
        """Reads a part of a file from its block, which is fetched if it is not in the cache.

        Raises:
            FileNotFoundError: The file does not exist.
            InputError: The store does not answer, or ignores the range.
        """
        start, end = block
        piece = self._folder / f"{name.replace('/', '-')}-{version}-{start}-{end}"
        part = _part_of(piece, end - start, offset - start, size)
        if part is not None:
            return part
        # Threads and processes that need the same piece wait for the first of them to fetch it.
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
                f"{self.place(name)}: the server does not answer range requests; copy the shards to a disk, or use a "
                "server that does"
            )
        return content

    def _tried(self, name: str, request: Callable[[], Value]) -> Value:
        """Answer to a request, which is repeated up to `_ATTEMPTS` times."""
        for attempt in range(_ATTEMPTS):
            try:
                return request()
            except FileNotFoundError:
                raise
            except Exception as error:  # every store's package raises different types
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
        temporary = piece.with_name(f".{piece.name}")  # only the holder of the lock writes it
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
        """Removes the oldest pieces; other processes may do so at the same time."""
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
    """Part of a cached piece; None if the piece is missing or incomplete."""
    try:
        with piece.open("rb", buffering=0) as kept:
            if os.fstat(kept.fileno()).st_size == length:
                return os.pread(kept.fileno(), size, offset)
    except FileNotFoundError:
        pass
    return None
