"""Writes files and folders that appear under their final name only when complete; detects Git LFS pointers."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm2vec.errors import InputError

_BLOCK_BYTES = 1 << 20
TEMPORARY_PREFIX = ".tmp-"
# The second is from before Git LFS's first release; such pointers are still valid.
_LFS_STARTS = (b"version https://git-lfs.github.com/spec/v", b"version https://hawser.github.com/spec/v")
# Number of leading bytes of a file that `is_lfs_pointer` needs.
LFS_START_BYTES = max(len(start) for start in _LFS_STARTS)
LFS_REMEDY = (
    "a Git LFS pointer, not the file itself: run `git lfs install` and `git lfs pull` in the clone, or download the "
    "repository with huggingface_hub (`hf download REPOSITORY`; for data with `--repo-type dataset`)"
)


@contextmanager
def committed(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path in the same folder; renames it to `path` on success, removes it otherwise.

    Args:
        path: The file's final name.
        durable: Wait until the bytes are on disk. False saves milliseconds for a file that need not survive a power cut
            because every start of the program writes it again.
    """
    temporary = temporary_for(path)
    try:
        yield temporary
        if durable:
            publish(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_filled(output: Path) -> None:
    """Checks that an output folder does not exist or is empty.

    Raises:
        InputError: It exists and is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists already; choose another folder or remove it")


@contextmanager
def appearing_folder(output: Path) -> Iterator[Path]:
    """Yields a temporary folder; renames it to `output` when the block succeeds, removes it otherwise.

    Raises:
        InputError: The folder cannot be written: disk full, no permission, and the like.
    """
    folder = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f"{TEMPORARY_PREFIX}{output.name}-"))
        folder.chmod(0o755)
        yield folder
        apply_umask(folder)
        for file in folder.iterdir():
            sync(file)
        if output.exists():
            output.rmdir()
        os.replace(folder, output)
        sync(output.parent)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error})") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def temporary_for(path: Path) -> Path:
    """Hidden temporary name for `path`: in the same folder, unique to this process."""
    return path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")


def publish(temporary: Path, path: Path) -> None:
    """Renames a finished file to its final name after its bytes are on disk."""
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
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file is a Git LFS pointer: what `git clone` leaves instead of a large file without Git LFS.

    Args:
        start: The file's first `LFS_START_BYTES` bytes or more.
    """
    return start.startswith(_LFS_STARTS)


def is_lfs_pointer_file(path: Path) -> bool:
    """Whether the file at a path is a Git LFS pointer; False if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return is_lfs_pointer(file.read(LFS_START_BYTES))
    except OSError:
        return False


def refuse_lfs_pointer(path: Path) -> None:
    """Refuses a Git LFS pointer; a file that cannot be opened is left to the code that reads it.

    Raises:
        InputError: The file is a Git LFS pointer; the message says how to get the file itself.
    """
    try:
        with path.open("rb") as file:
            start = file.read(LFS_START_BYTES)
    except OSError:
        return
    if is_lfs_pointer(start):
        raise InputError(f"{path}: {LFS_REMEDY}")


def apply_umask(folder: Path) -> None:
    """Gives a folder's files the permissions that `open` gives: safetensors and tempfile make them private."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~umask)
