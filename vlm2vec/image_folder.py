"""Reads pictures by the relative paths that data files name, and never from outside their folder."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from vlm2vec.errors import InputError
from vlm2vec.images import MAX_IMAGE_BYTES


class MissingImageError(InputError):
    """There is no such picture."""


class UnsafePathError(InputError):
    """A picture's path that leads, or could lead, out of its folder."""


def check_relative(path: str) -> None:
    """Refuses what is no plain relative path, whatever is read by it: a folder or an archive.

    Raises:
        UnsafePathError: an absolute path, `..`, a backslash or a NUL in it.
    """
    if "\0" in path or "\\" in path:
        raise UnsafePathError(f"{path!r}: backslash or NUL in a picture's path")
    if path.startswith("/") or (".." in path and ".." in path.split("/")):
        raise UnsafePathError(f"{path}: a picture's path must be relative and without '..'")


class ImageFolder:
    """A folder of pictures. Paths from data are hostile until shown otherwise: they stay inside or are refused."""

    def __init__(self, root: str | Path) -> None:
        if not os.path.isdir(root):
            raise InputError(f"{root}: no such image folder")
        self.root = Path(root)
        self._real_root = os.path.realpath(root)
        self._real_folders: dict[str, str] = {}

    def read(self, relative: str) -> bytes:
        """The file's bytes, undecoded.

        Raises:
            UnsafePathError: as `check_relative`, or a link that leads out of the folder.
            MissingImageError: no such file.
            InputError: not a regular file (a folder, a pipe), too large for a picture, no permission.
        """
        with self._opened(relative) as file:
            return file.read()

    def check(self, relative: str) -> None:
        """Raises what `read` would raise, without reading the file."""
        self._opened(relative).close()

    def _opened(self, relative: str) -> _File:
        """Opens the file without following a link at its end, so that what was checked is what is read."""
        check_relative(relative)
        try:
            path = self._confined(relative)
            try:
                file = _File(path)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                file = _File(self._inside(os.path.realpath(path), relative))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingImageError(
                f"{self.root / relative}: no such picture (is the image folder {self.root} the right one?)"
            ) from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{self.root / relative}: cannot read the picture ({reason})") from error
        regular, size = stat.S_ISREG(file.status.st_mode), file.status.st_size
        if not regular or size > MAX_IMAGE_BYTES:
            file.close()
            reason = f"{size} bytes are too many for a picture" if regular else "not a regular file"
            raise InputError(f"{self.root / relative}: {reason}")
        return file

    def _confined(self, relative: str) -> str:
        """The real path of the file's folder, which costs more than reading the file and is remembered, and its name.

        Raises:
            UnsafePathError: a folder on the way is a link that leads out.
        """
        folder, _, name = relative.rpartition("/")
        real = self._real_folders.get(folder)
        if real is None:
            real = self._inside(os.path.realpath(os.path.join(self.root, folder)), relative)
            self._real_folders[folder] = real
        return f"{real}/{name}"

    def _inside(self, real: str, relative: str) -> str:
        if os.path.commonpath([self._real_root, real]) != self._real_root:
            raise UnsafePathError(f"{os.path.join(self.root, relative)}: a link that leads out of {self.root}")
        return real


class _File:
    """An open file: its status, its content, in as few system calls as there are."""

    def __init__(self, path: str) -> None:
        # Without O_NONBLOCK, opening a pipe would wait for ever.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        self.status = os.fstat(self._descriptor)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> bytes:
        """The whole content."""
        content = os.read(self._descriptor, self.status.st_size)
        while len(content) < self.status.st_size:
            more = os.read(self._descriptor, self.status.st_size - len(content))
            if not more:
                break  # it has become shorter; decoding tells
            content += more
        return content

    def close(self) -> None:
        """Closes it."""
        os.close(self._descriptor)
