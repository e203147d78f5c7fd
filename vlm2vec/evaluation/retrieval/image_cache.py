"""Puts a collection's images, from table cells or files, into one folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from vlm2vec.errors import InputError
from vlm2vec.files import TEMPORARY_PREFIX
from vlm2vec.images.decode import MAX_IMAGE_BYTES
from vlm2vec.images.folder import ImageFolder
from vlm2vec.images.paths import plain_path


class ImageCache:
    """Gives every image a path in one folder: bytes of a table become a file; a file of the dataset, or a folder of
    frames, becomes a link to it.

    The name is a hash of the bytes, or of the file's real path, so that a restart writes nothing twice.

    Args:
        folder: Folder of this cache, not shared with anything else.
        source: Folder that the tables' paths are relative to; a path must not lead out of it.

    Raises:
        InputError: The folder cannot be written.
    """

    def __init__(self, folder: Path, source: ImageFolder) -> None:
        self._folder = folder
        self._source = source
        self._made: set[str] = set()

    def add(self, image: Any) -> str:
        """Adds an image and returns its path in the folder.

        Args:
            image: The file's bytes, its path, or a struct `{bytes, path}` (Hugging Face's image feature), whose bytes
                take precedence.

        Raises:
            InputError: It is none of these, its path leads out of the source or to no file, or it has too many bytes.
        """
        path: Any = None
        if isinstance(image, dict):
            image, path = image.get("bytes"), image.get("path")
        if image is None:
            image = path
        if isinstance(image, bytes):
            return self._add_bytes(image)
        if isinstance(image, str) and image:
            return self._add_file(image)
        raise InputError(f"an image is {type(image).__name__}; expected bytes, a path, or {{bytes, path}}")

    def _add_bytes(self, data: bytes) -> str:
        if len(data) > MAX_IMAGE_BYTES:
            raise InputError(f"an image has {len(data):,} bytes, more than {MAX_IMAGE_BYTES:,}")
        name = self._name(hashlib.blake2b(data, digest_size=16).hexdigest())
        target = self._folder / name
        if not target.is_file() or target.stat().st_size != len(data):
            temporary = self._temporary(target)
            temporary.write_bytes(data)
            os.replace(temporary, target)
        return name

    def _add_file(self, path: str) -> str:
        for file in self._source.files(path):
            self._source.check(file)
        real = os.path.realpath(self._source.root / plain_path(path))
        if not os.path.exists(real):  # the file exists under a different Unicode normal form of its name
            return self._add_bytes(self._source.read(path))
        name = self._name(hashlib.blake2b(os.fsencode(real), digest_size=16).hexdigest() + "-link")
        target = self._folder / name
        if not target.is_symlink() or os.readlink(target) != real:
            temporary = self._temporary(target)
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(real)
            os.replace(temporary, target)
        return name

    def _name(self, digest: str) -> str:
        """Name of a file in one of 256 folders: a single folder with a million entries is slow to list."""
        if digest[:2] not in self._made:
            (self._folder / digest[:2]).mkdir(parents=True, exist_ok=True)
            self._made.add(digest[:2])
        return f"{digest[:2]}/{digest[2:]}"

    @staticmethod
    def _temporary(target: Path) -> Path:
        return target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{target.name}")
