"""Reads images by the relative paths in data files, never from outside their folder."""

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

# File formats of a clip's frames.
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key of a name, with numbers in it compared by value: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", name)]


class ImageFolder:
    r"""A folder of images. Paths from data are not trusted: those that lead out of the folder are refused.

    All spellings of a path find its file: `./`, `//` and `\` are read as unzip reads them, and `é` may be one
    character or two (NFC, NFD).

    Args:
        root: The folder.
        allow_links: Follow links that lead out of the folder; links inside it are always followed.
        num_frames: Number of images to take from a path that names a folder, see `files`; None: it is an error.

    Raises:
        InputError: There is no such folder.
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
        """Reads a file's bytes, without decoding.

        Raises:
            UnsafePathError: The path is absolute, contains `..` or NUL, or is a link that leads out of the folder.
            MissingImageError: There is no such file.
            InputError: It is not a regular file (but a folder or pipe), too large for an image, not permitted, or there
                are two different files whose paths differ only in their Unicode form.
        """
        with self._opened(relative) as file:
            return file.read()

    def files(self, relative: str) -> tuple[str, ...]:
        """The path itself, or the frames of a clip if the path names a folder: its images in natural order.

        At most `num_frames` frames are taken, evenly spaced from the first to the last, as in MMEB-V2's code
        (`numpy.linspace`, rounded down).

        Raises:
            UnsafePathError: See `read`.
            InputError: The folder has no images.
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
        """Raises the errors of `read` without reading the file."""
        self.status(relative)

    def status(self, relative: str) -> os.stat_result:
        """Size and times of the file that `read` would read.

        Raises:
            InputError: See `read`.
        """
        with self._opened(relative) as file:
            return file.status

    def refuse_outside_links(self, relative: str) -> None:
        """Checks a folder and its sub-folders for links out of the image folder; a missing folder is accepted.

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
        """Existing paths that differ from this one only in their Unicode form."""
        found = [""]
        for part in path.split("/"):
            found = [
                f"{folder}/{name}" if folder else name
                for folder in found
                for name in ([part] if part.isascii() else self._listing(folder).get(composed(part), []))
            ]
        return sorted(found)

    def _listing(self, folder: str) -> dict[str, list[str]]:
        """Names in a folder that are not ASCII, by their composed form."""
        if folder not in self._listings:
            names: dict[str, list[str]] = {}
            try:
                for name in os.listdir(self._real_folder(folder, folder)):
                    if not name.isascii():
                        names.setdefault(composed(name), []).append(name)
            except OSError:
                pass  # the folder does not exist or cannot be listed: there is no other spelling
            self._listings[folder] = names
        return self._listings[folder]

    def _opened_as_spelled(self, path: str) -> _File:
        """Opens the file without following a link at its end, so that the checked file is the one that is read."""
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
        """Real path of the folder of `path`, cached, because finding it takes longer than reading a file.

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
    """Context that adds a program's flag to the error for a link that leads out of an image folder.

    Raises:
        InputError: In place of an `OutsideLinkError`.
    """
    try:
        yield
    except OutsideLinkError as error:
        raise InputError(f"{error}; pass {flag} to follow links that lead out of the image folder") from error


class _File:
    """An open file with its status and content, read with the fewest possible system calls."""

    def __init__(self, path: str) -> None:
        # Without O_NONBLOCK, opening a pipe would wait for ever.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        self.status = os.fstat(self._descriptor)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> bytes:
        """Reads the whole content."""
        content = os.pread(self._descriptor, self.status.st_size, 0)
        while len(content) < self.status.st_size:
            more = os.pread(self._descriptor, self.status.st_size - len(content), len(content))
            if not more:
                break  # the file has become shorter, which decoding will detect
            content += more
        return content

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)
