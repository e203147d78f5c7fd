"""Checks a folder of shards: completeness, and reading speed from the disk and from the page cache."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from vlm2vec.doctor.finding import FAIL, OK, WARN, Finding
from vlm2vec.errors import InputError
from vlm2vec.shards import ShardSet

_MEGABYTE = 1e6
_SAMPLE_BYTES = 256 * 2**20
_BLOCK_BYTES = 2**20
# MB/s. One H100 rank trains on about ten pairs per second, which are a few megabytes.
_SLOW, _TOO_SLOW = 200.0, 20.0


def data_findings(folder: Path) -> Iterator[Finding]:
    """Checks the shards' completeness and reading speed."""
    try:
        shards = ShardSet.open(folder)
    except InputError as error:
        yield Finding(FAIL, str(error), "run python -m data_prep.convert again to finish an interrupted conversion")
        return
    samples = sum(shards.num_samples.values())
    tars = sorted(folder.glob("*/*.tar"), key=lambda path: path.stat().st_size, reverse=True)
    size = sum(path.stat().st_size for path in tars)
    yield Finding(OK, f"{folder}: {samples:,} samples in {len(tars)} shards, {size / 1e9:.2f} GB")
    yield read_speed(tars[0])
    yield _fits_into_memory(size)


def read_speed(path: Path) -> Finding:
    """Reads the beginning of a file from its disk, and again from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        cold, warm = _megabytes_a_second(file.fileno()), _megabytes_a_second(file.fileno())
    what = f"{path.name}: {cold:,.0f} MB/s from the disk, {warm:,.0f} MB/s from the page cache"
    remedy = "copy the shards to a local disk, or raise --dataloader_num_workers"
    if cold >= _SLOW:
        return Finding(OK, what)
    return Finding(FAIL if cold < _TOO_SLOW and warm < _SLOW else WARN, what, remedy)


def _megabytes_a_second(descriptor: int) -> float:
    start, done = time.perf_counter(), 0
    while done < _SAMPLE_BYTES:
        block = os.pread(descriptor, _BLOCK_BYTES, done)
        if not block:
            break
        done += len(block)
    return done / _MEGABYTE / max(time.perf_counter() - start, 1e-9)


def _fits_into_memory(size: int) -> Finding:
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    what = f"{size / 1e9:.2f} GB of shards, {available / 1e9:.1f} GB of memory free for the page cache"
    return Finding(OK, what if size <= available else f"{what}: every epoch reads from the disk")
