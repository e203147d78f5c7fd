"""Speed of the converter, compared with `tar` on the same files and disk.

    python -m benchmarks.data [--images 20000] [--rounds 5] [--work_dir DIR]

Images of 53 KB (noise as JPEG) are written once. Then each round times `tar` on the folder, and the converter on the
same images with --check_images none. Both end with all bytes on disk (tar by fsync of its archive; the converter does
so for each file). The best round of each counts, because other programs can only slow a run down. Decoding every image
is timed once, for information.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.command_line import NUM_WORKERS_HELP, positive
from data_prep.processes import available_cores
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line

SUBSET = "Photographs"
IMAGE_PIXELS = (480, 360)
JPEG_QUALITY = 60
_DIFFERENT = 32  # encoding is slow, so only this many images are drawn; a comment at their end makes copies distinct


def write_source(root: Path, images: int) -> int:
    """Writes one subset whose rows name two images each, every image once; returns the images' bytes."""
    folder = root / "images" / SUBSET / "Train"
    folder.mkdir(parents=True)
    drawn = [_jpeg(number) for number in range(min(_DIFFERENT, images))]
    paths = []
    size = 0
    for number in range(images):
        content = drawn[number % len(drawn)] + b"%08d" % number
        paths.append(f"images/{SUBSET}/Train/{number:06d}.jpg")
        (root / paths[-1]).write_bytes(content)
        size += len(content)
    rows = {"qry": [f"<|image_1|> {path}" for path in paths[::2]], "qry_image_path": paths[::2]}
    rows |= {"pos_text": [""] * len(paths[::2]), "pos_image_path": paths[1::2]}
    (root / SUBSET).mkdir()
    pq.write_table(pa.table(rows), root / SUBSET / "original-00000-of-00001.parquet", row_group_size=1000)
    return size


def _jpeg(seed: int) -> bytes:
    width, height = IMAGE_PIXELS
    pixels = np.random.default_rng(seed).normal(128, 40, (height, width, 3)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def seconds_of(action: Callable[[Path], object], output: Path) -> tuple[float, float]:
    """Wall and processor time of one run into a new folder; earlier writes are flushed before the clock starts."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    os.sync()
    start, earlier = time.perf_counter(), sum(os.times()[:4])
    action(output)
    elapsed, processor = time.perf_counter() - start, sum(os.times()[:4]) - earlier
    shutil.rmtree(output)
    return elapsed, processor


def run_tar(source: Path, output: Path) -> None:
    """Runs `tar` on the images."""
    archive = output / "images.tar"
    subprocess.run(["tar", "-cf", archive, "-C", source, "images"], check=True)
    descriptor = os.open(archive, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def run_converter(source: Path, output: Path, *, check: str, workers: int) -> None:
    """Runs the converter, including its start."""
    command = [sys.executable, "-m", "data_prep.convert", "--dataset_name", str(source), "--subset_name", SUBSET]
    command += ["--output_dir", str(output), "--check_images", check, "--num_workers", str(workers)]
    subprocess.run([*command, "--rows_per_shard", "512"], check=True, stdout=subprocess.DEVNULL)


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.data",
        description=first_line(__doc__),
        examples=("python -m benchmarks.data --images 20000 --rounds 5",),
    )
    made.add_argument("--images", type=positive, default=20_000, help="Number of images, of 53 KB each.")
    made.add_argument("--rounds", type=positive, default=5, help="Number of rounds; what is compared takes turns.")
    made.add_argument(
        "--work_dir",
        type=Path,
        metavar="DIR",
        help="Folder on the disk to measure. If not given: the system's temporary folder.",
    )
    made.add_argument("--num_workers", type=positive, default=available_cores(), help=NUM_WORKERS_HELP)
    return made


def main() -> None:
    """Parses the command line, measures, prints each round and the ratio."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as folder:
        _measure(Path(folder), arguments)


def _measure(work: Path, arguments: argparse.Namespace) -> None:
    source, output, workers = work / "MMEB-train", work / "out", arguments.num_workers
    size = write_source(source, arguments.images)
    rounds = [*(["tar", "none"] * arguments.rounds), "decode"]
    times: dict[str, list[tuple[float, float]]] = {"tar": [], "none": [], "decode": []}
    for name in rounds:
        run = run_tar if name == "tar" else partial(run_converter, check=name, workers=workers)
        times[name].append(seconds_of(partial(run, source), output))
        progress = f"{name:<7} {times[name][-1][0]:6.2f} s, processors {times[name][-1][1]:6.2f} s"
        print(progress, file=sys.stderr, flush=True)
    best = {name: tuple(min(column) for column in zip(*runs, strict=True)) for name, runs in times.items()}
    print(
        f"{arguments.images:,} images, {size / 1e6:,.0f} MB; converter with {workers} workers, best of "
        f"{arguments.rounds} rounds, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.\n\n"
        "| program | MB/s | of tar's speed | processor s/GB |\n| --- | --- | --- | --- |"
    )
    for name, (seconds, processor) in best.items():
        label = "tar" if name == "tar" else f"converter, --check_images {name}"
        speed = f"{size / seconds / 1e6:.0f} | {best['tar'][0] / seconds:.2f}"
        print(f"| {label} | {speed} | {processor / size * 1e9:.2f} |")


if __name__ == "__main__":
    sys.exit(run_program(main))
