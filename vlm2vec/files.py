"""Files that appear under their final name only when they are complete and on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BLOCK_BYTES = 1 << 20
TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def committed(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; on success it is published as `path`, else removed."""
    temporary = temporary_for(path)
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_for(path: Path) -> Path:
    """The hidden name, in the same folder and of this process alone, under which `path` is being written."""
    return path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")


def publish(temporary: Path, path: Path) -> None:
    """Renames a finished file to its final name, once its bytes are on disk."""
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def apply_umask(folder: Path) -> None:
    """Gives a folder's files the permissions that a plain `open` would: safetensors and tempfile keep them private."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~umask)
