"""Converts and verifies a synthetic dataset with MMEB-train's layout and proportions, a million rows by default.

    python -m benchmarks.million_rows [OUT] [--rows 1000000] [--source_only]

It writes MMEB-train to OUT or a temporary folder: the tables of 20 subsets, and a few hundred tiny images per subset,
which the rows share. The content is noise; everything that grows with the number of rows is measured. The shards are
written beside it.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.command_line import positive
from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.mmeb import MMEB, TrainSubset

ROWS = 1_000_000
IMAGES_PER_SUBSET = 256
IMAGE_SIZE = 12  # pixels per side: 0.5 KB as PNG
ROW_GROUP_ROWS = 10_000
_WORDS = ("a", "the", "red", "small", "dog", "cat", "house", "street", "two", "what", "where", "on", "left", "right")


def write_source(root: Path, rows: int = ROWS, images: int = IMAGES_PER_SUBSET) -> dict[str, int]:
    """Writes the dataset; the same arguments give the same bytes.

    Args:
        root: A new folder, to be used as --dataset_name and --image_dir.
        rows: Number of rows of all subsets together, in MMEB-train's proportions, at least one per subset.
        images: Number of images per subset; each is used if there are enough rows.

    Returns:
        The number of rows of each subset.

    Raises:
        InputError: `root` exists.
    """
    if root.exists():
        raise InputError(f"{root}: exists already; remove it or choose a different folder")
    ends = np.cumsum([subset.rows for subset in MMEB.train_subsets], dtype=np.float64)
    counts = np.diff(np.rint(ends / ends[-1] * rows).astype(np.int64), prepend=0).clip(min=1)
    for subset, count in zip(MMEB.train_subsets, counts, strict=True):
        paths = _write_images(root, subset.name, images)
        (root / subset.name).mkdir()
        table = _table(subset, int(count), paths)
        pq.write_table(table, root / subset.name / "original-00000-of-00001.parquet", row_group_size=ROW_GROUP_ROWS)
    return {subset.name: int(count) for subset, count in zip(MMEB.train_subsets, counts, strict=True)}


def _write_images(root: Path, subset: str, count: int) -> list[str]:
    generator = np.random.default_rng(zlib.crc32(subset.encode()))
    (root / "images" / subset / "Train").mkdir(parents=True)
    paths = [f"images/{subset}/Train/{number:05d}.png" for number in range(count)]
    for path in paths:
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)).save(buffer, "PNG")
        (root / path).write_bytes(buffer.getvalue())
    return paths


def _table(subset: TrainSubset, count: int, paths: list[str]) -> pa.Table:
    generator = np.random.default_rng([zlib.crc32(subset.name.encode()), 1])
    has_image = {"qry": "I" in subset.query_modality, "pos": "I" in subset.target_modality}
    tag = "<|image_1|>\n" if has_image["qry"] else ""
    columns: dict[str, list[str]] = {
        "qry": [f"{tag}Answer the question. {text}?\n" for text in _texts(generator, count)],
        "pos_text": [_target_text(text, subset.target_modality) for text in _texts(generator, count)],
    }
    for side, shown in has_image.items():
        chosen = np.arange(count) % len(paths) if side == "qry" else generator.integers(0, len(paths), count)
        columns[f"{side}_image_path"] = [paths[number] if shown else "" for number in chosen.tolist()]
    return pa.table({name: columns[name] for name in ("qry", "qry_image_path", "pos_text", "pos_image_path")})


def _target_text(text: str, modality: str) -> str:
    """An image alone has no text. With a text it needs a tag, without which the converter leaves out the row."""
    return "" if modality == "I" else f"<|image_1|>\n{text}" if "I" in modality else text


def _texts(generator: np.random.Generator, count: int) -> list[str]:
    """Texts of one to twelve words, with a number so that most are distinct."""
    words = generator.integers(0, len(_WORDS), (count, 11)).tolist()
    lengths = generator.integers(0, 12, count).tolist()
    return [
        " ".join((str(number), *(_WORDS[word] for word in row[:length])))
        for number, (row, length) in enumerate(zip(words, lengths, strict=True))
    ]


def measure(command: Sequence[str]) -> tuple[float, float, float]:
    """Runs a program; returns its wall time and processor time in seconds, and its peak memory in MB.

    Workers are included. Memory is the sum of the processes' proportional set sizes (PSS), ten times per second.

    Raises:
        InputError: The program failed.
    """
    start, earlier = time.perf_counter(), os.times()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(_proportional_megabytes(pid) for pid in _descendants(process.pid)))
        time.sleep(0.1)
    if process.returncode:
        raise InputError(f"{' '.join(command)}: exit code {process.returncode}")
    used = os.times()
    processor = used.children_user + used.children_system - earlier.children_user - earlier.children_system
    return time.perf_counter() - start, processor, peak


def _descendants(process: int) -> list[int]:
    """A process and all its descendants, even those in a different session (a launcher's ranks)."""
    with suppress(psutil.Error):
        leader = psutil.Process(process)
        return [process, *(child.pid for child in leader.children(recursive=True))]
    return []


def _proportional_megabytes(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.million_rows",
        description=first_line(__doc__),
        examples=("python -m benchmarks.million_rows SYNTHETIC --rows 1000000",),
    )
    made.add_argument(
        "output_dir",
        type=Path,
        nargs="?",
        metavar="OUT",
        help="Folder for the folders MMEB-train and shards. If not given: nothing is kept.",
    )
    made.add_argument("--rows", type=positive, default=ROWS, help="Number of rows in all subsets together.")
    made.add_argument("--source_only", action="store_true", help="Write MMEB-train and measure nothing.")
    return made


def main() -> None:
    """Parses the command line, writes the source, measures."""
    arguments = parser().parse_args()
    if arguments.source_only and arguments.output_dir is None:
        raise InputError("--source_only: needs OUT, or nothing would be kept")
    with tempfile.TemporaryDirectory() as folder:
        run(arguments.output_dir or Path(folder), arguments.rows, arguments.source_only)


def run(output_dir: Path, num_rows: int, source_only: bool) -> None:
    """Writes the source and measures both programs on it."""
    source, shards = output_dir / "MMEB-train", output_dir / "shards"
    rows = write_source(source, num_rows)
    print(f"{sum(rows.values()):,} rows in {len(rows)} subsets")
    if source_only:
        return
    print("\n| program | s | processor s | peak MB |\n| --- | --- | --- | --- |")
    convert = ["data_prep.convert", "--dataset_name", str(source), "--subset_name", "all", "--output_dir", str(shards)]
    for program in (convert, ["data_prep.verify", str(shards)]):
        seconds, processor, megabytes = measure([sys.executable, "-m", *program])
        print(f"| {program[0]} | {seconds:.0f} | {processor:.0f} | {megabytes:.0f} |", flush=True)
    tars = list(shards.rglob("*.tar"))
    size = sum(path.stat().st_size for path in tars)
    print(f"\n{len(tars)} tars, {size / 1e6:,.0f} MB, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}.")


if __name__ == "__main__":
    sys.exit(run_program(main))
