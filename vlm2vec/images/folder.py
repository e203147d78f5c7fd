"""Reads images by the relative paths that data files name, and never from outside their folder."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm2vec.errors import InputError
from vlm2vec.images.decode import MAX_IMAGE_BYTES
from vlm2vec.images.paths import MissingImageError, OutsideLinkError, composed, plain_path

# What a clip's frames are saved as.
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")


def _natural(name: str) -> list[tuple[int, str]]:
    """For sorting: numbers in a name by their values, 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", name)]


class ImageFolder:
    r"""A folder of images. Paths from data are hostile until shown otherwise: they stay inside or are refused.

    A path finds its file whatever the spelling: `./`, `//` and `\` are read as unzip reads them, and `é` may be one
    character or two (NFC, NFD).

    Args:
        root: The folder.
        allow_links: Follow links that lead out of the folder; links inside it are always followed.
        num_frames: Number of images to take from a path that names a folder, see `files`; None: it is an error.

    Raises:
        InputError: No such folder.
    """

    def __init__(self, root: str | Path, allow_links: bool = False, num_frames: int | None = None) -> None:
        if not os.path.isdir(root):
            raise InputError(f"{root}: no such image folder")
        self.root = Path(root)
        self.num_frames = num_frames
        self._allow_links = allow_links
        self._real_root = os.path.realpath(root)
        self._real_folders: dict[str, str] = {}
        self._listings: dict[str, dict[str, list[str]]] = {}

    def read(self, relative: str) -> bytes:
        """The file's bytes, undecoded.

        Raises:
            UnsafePathError: An absolute path, `..` or a NUL in it, or a link that leads out of the folder.
            MissingImageError: No such file.
            InputError: Not a regular file (a folder, a pipe), too large for an image, no permission, or two different
                files that only differ in the path's Unicode form.
        """
        with self._opened(relative) as file:
            return file.read()

    def files(self, relative: str) -> tuple[str, ...]:
        """The image itself, or the frames of a clip: images of the folder that a path names, in natural order.

        Frames are evenly spaced, the first and the last among them, as MMEB-V2's code takes them (`numpy.linspace` to
        whole numbers); all, if there are not more than `num_frames`.

        Raises:
            UnsafePathError: As `read`.
            InputError: A folder without an image, or not wanted (`num_frames`).
        """
        if self.num_frames is None or not os.path.isdir(os.path.join(self.root, plain := plain_path(relative))):
            return (relative,)
        real = self._inside(os.path.realpath(os.path.join(self.root, plain)), relative)
        names = [name for name in os.listdir(real) if name.lower().endswith(FRAME_SUFFIXES)]
        if not names:
            raise InputError(f"{self.root / relative}: a folder without frames ({', '.join(FRAME_SUFFIXES)})")
        names.sort(key=_natural)
        if len(names) > self.num_frames:
            last = len(names) - 1
            steps = max(1, self.num_frames - 1)
            names = [names[last * frame // steps] for frame in range(self.num_frames)]
        return tuple(f"{plain}/{name}" for name in names)

    def check(self, relative: str) -> None:
        """Raises what `read` would raise, without reading the file."""
        self.status(relative)

    def status(self, relative: str) -> os.stat_result:
        """Size and times of the file that `read` would read.

        Raises:
            InputError: As `read`.
        """
        with self._opened(relative) as file:
            return file.status

    def refuse_outside_links(self, relative: str) -> None:
        """Checks a folder and the folders in it, before any image is read; a folder that is not there is fine.

        Raises:
            OutsideLinkError: It, or a folder in it, is a link that leads out of the image folder.
        """
        folder = os.path.join(self.root, relative)
        if not os.path.isdir(folder):
            return
        self._inside(os.path.realpath(folder), relative)
        with os.scandir(folder) as entries:
            links = [entry.name for entry in entries if entry.is_symlink() and entry.is_dir()]
        for name in sorted(links):
            self._inside(os.path.realpath(os.path.join(folder, name)), os.path.join(relative, name))

    def _opened(self, relative: str) -> _File:
        path = plain_path(relative)
        try:
            return self._opened_as_spelled(path)
        except MissingImageError:
            spellings = [] if path.isascii() else [name for name in self._spellings(path) if name != path]
            if not spellings:
                raise
        file = self._opened_as_spelled(spellings[0])
        for other in spellings[1:]:
            with self._opened_as_spelled(other) as twin:
                same = file.read() == twin.read()
            if not same:
                file.close()
                raise InputError(
                    f"{self.root / relative}: {spellings[0]!r} and {other!r} differ only in their Unicode form and "
                    "hold different images; remove one"
                )
        return file

    def _spellings(self, path: str) -> list[str]:
        """The existing paths that are the same but for their Unicode form."""
        found = [""]
        for part in path.split("/"):
            found = [
                f"{folder}/{name}" if folder else name
                for folder in found
                for name in ([part] if part.isascii() else self._listing(folder).get(composed(part), []))
            ]
        return sorted(found)

    def _listing(self, folder: str) -> dict[str, list[str]]:
        """A folder's names that are not ASCII, by their composed form."""
        if folder not in self._listings:
            names: dict[str, list[str]] = {}
            try:
                for name in os.listdir(self._real_folder(folder, folder)):
                    if not name.isascii():
                        names.setdefault(composed(name), []).append(name)
            except OSError:
                pass  # no such folder, or none that may be listed: no other spelling
            self._listings[folder] = names
        return self._listings[folder]

    def _opened_as_spelled(self, path: str) -> _File:
        """Opens the file without following a link at its end, so that what was checked is what is read."""
        try:
            folder, _, name = path.rpartition("/")
            real = f"{self._real_folder(folder, path)}/{name}"
            try:
                file = _File(real)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                file = _File(self._inside(os.path.realpath(real), path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingImageError(
                f"{self.root / path}: no such image (is the image folder {self.root} the right one?)"
            ) from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{self.root / path}: cannot read the image ({reason})") from error
        regular, size = stat.S_ISREG(file.status.st_mode), file.status.st_size
        if not regular or size > MAX_IMAGE_BYTES:
            file.close()
            reason = f"{size} bytes are too many for an image" if regular else "not a regular file"
            if stat.S_ISDIR(file.status.st_mode):
                reason = "not a regular file (a folder; where a number of frames is given, it is read as a clip)"
            raise InputError(f"{self.root / path}: {reason}")
        return file

    def _real_folder(self, folder: str, path: str) -> str:
        """The real path of the folder that `path` lies in; it costs more than reading a file and is remembered.

        Raises:
            OutsideLinkError: A folder on the way is a link that leads out; the message names `path`.
        """
        real = self._real_folders.get(folder)
        if real is None:
            real = self._inside(os.path.realpath(os.path.join(self.root, folder)), path)
            self._real_folders[folder] = real
        return real

    def _inside(self, real: str, relative: str) -> str:
        if not self._allow_links and os.path.commonpath([self._real_root, real]) != self._real_root:
            raise OutsideLinkError(f"{os.path.join(self.root, relative)}: a link that leads out of {self.root}")
        return real


@contextmanager
def links_remedy(flag: str) -> Iterator[None]:
    """Names a program's flag where a link leads out of an image folder.

    Raises:
        InputError: In the place of an `OutsideLinkError`.
    """
    try:
        yield
    except OutsideLinkError as error:
        raise InputError(f"{error}; pass {flag} to follow links that lead out of the image folder") from error


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
        content = os.pread(self._descriptor, self.status.st_size, 0)
        while len(content) < self.status.st_size:
            more = os.pread(self._descriptor, self.status.st_size - len(content), len(content))
            if not more:
                break  # it has become shorter; decoding tells
            content += more
        return content

    def close(self) -> None:
        """Closes it."""
        os.close(self._descriptor)
