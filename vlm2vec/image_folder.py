"""Reads pictures by the relative paths that data files name, and never from outside their folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from vlm2vec.errors import InputError


class ImageFolder:
    """A folder of pictures. Paths from data are hostile until shown otherwise: they stay inside or are refused."""

    def __init__(self, root: str | Path) -> None:
        if not os.path.isdir(root):
            raise InputError(f"{root}: no such image folder")
        self.root = Path(root)
        self._real_root = os.path.realpath(root)

    def read(self, relative: str) -> bytes:
        """The file's bytes, undecoded.

        Raises:
            InputError: an absolute path, `..`, a backslash or a NUL in it; a link that leads out of the folder;
                no such file; not a regular file (a folder, a pipe); no permission.
        """
        path = self._confined(relative)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise InputError(f"{path}: not a regular file")
            with open(path, "rb") as file:
                return file.read()
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such picture (is the image folder {self.root} the right one?)") from error
        except OSError as error:
            raise InputError(f"{path}: cannot read the picture ({error.strerror})") from error

    def _confined(self, relative: str) -> str:
        if "\0" in relative or "\\" in relative:
            raise InputError(f"{relative!r}: backslash or NUL in a picture's path")
        pure = PurePosixPath(relative)
        if pure.is_absolute() or ".." in pure.parts or os.path.isabs(relative):
            raise InputError(f"{relative}: a picture's path must be relative and without '..'")
        path = os.path.join(self.root, relative)
        if os.path.commonpath([self._real_root, os.path.realpath(path)]) != self._real_root:
            raise InputError(f"{path}: a link that leads out of {self.root}")
        return path
