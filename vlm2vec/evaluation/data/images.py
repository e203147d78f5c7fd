"""Scans the image files of items without decoding them: content hash and size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vlm2vec.errors import InputError
from vlm2vec.evaluation.data.items import ItemTable
from vlm2vec.evaluation.naming import Thing, ThingError
from vlm2vec.images.decode import read_header
from vlm2vec.images.folder import ImageFolder
from vlm2vec.images.paths import OutsideLinkError
from vlm2vec.messages.progress import progress_bar

# Threads help, because reading, hashing and parsing headers wait for the disk or release the interpreter's lock.
_THREADS = 8
# Images per task: with one per task, the overhead of a task would equal the reading time.
_AT_A_TIME = 64


@dataclass(frozen=True)
class ImageFile:
    """The file of an item's image path, or the frames of its clip.

    Attributes:
        content: 128-bit hash of the bytes.
        sizes: (width, height) of each image in pixels.
    """

    content: bytes
    sizes: tuple[tuple[int, int], ...]


def scan_images(items: ItemTable, folder: ImageFolder) -> Mapping[str, ImageFile]:
    """Reads every image file of the items once, without decoding.

    Returns:
        The image files by path.

    Raises:
        OutsideLinkError: A link leads out of the folder, and such links are not allowed. A linked folder is found
            before any image is read.
        InputError: A path leads out of the folder, or a file is missing or no image; the message names the first
            one, the row that uses it, and how many more are bad.
    """
    first_use: dict[str, int] = {}
    for index, image in enumerate(items.columns["image"].to_pylist()):
        if image:
            first_use.setdefault(image, index)
    paths = list(first_use)
    _refuse_outside_links(items, first_use, folder)
    found: dict[str, ImageFile] = {}
    failures: list[tuple[str, InputError]] = []

    runs = [paths[start : start + _AT_A_TIME] for start in range(0, len(paths), _AT_A_TIME)]
    with ThreadPoolExecutor(_THREADS) as pool, progress_bar(len(paths), "check", "image") as progress:
        for run, results in zip(runs, pool.map(lambda run: [_scan(folder, path) for path in run], runs), strict=True):
            for path, result in zip(run, results, strict=True):
                if isinstance(result, ImageFile):
                    found[path] = result
                else:
                    failures.append((path, result))
            progress.update(len(run))
    if failures:
        path, error = failures[0]
        more = f" (and {len(failures) - 1} more of {len(paths)} images)" if len(failures) > 1 else ""
        if isinstance(error, OutsideLinkError):
            raise OutsideLinkError(f"{items.use(first_use[path])}: {error}{more}")
        raise ThingError(Thing.IMAGES, f"{folder.root}: {items.use(first_use[path])}: {error}{more}")
    return found


def _refuse_outside_links(items: ItemTable, first_use: Mapping[str, int], folder: ImageFolder) -> None:
    """Checks the first image of each folder, so that a linked folder is found before all images are read."""
    first_of_folder: dict[str, str] = {}
    for path in first_use:
        first_of_folder.setdefault(os.path.dirname(path), path)
    for path in first_of_folder.values():
        try:
            folder.check(folder.files(path)[0])
        except OutsideLinkError as error:
            raise OutsideLinkError(f"{items.use(first_use[path])}: {error}") from error
        except InputError:
            pass  # counted among all images' failures


def _scan(folder: ImageFolder, path: str) -> ImageFile | InputError:
    digests, sizes = [], []
    try:
        for file in folder.files(path):
            data = folder.read(file)
            header = read_header(data, str(folder.root / file))
            digests.append(hashlib.blake2b(data, digest_size=16).digest())
            sizes.append((header.width, header.height))
    except InputError as error:
        return error
    content = digests[0] if len(digests) == 1 else hashlib.blake2b(b"".join(digests), digest_size=16).digest()
    return ImageFile(content, tuple(sizes))
