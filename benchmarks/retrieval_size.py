"""Time and memory of `eval.retrieval` on a large corpus of visual documents, and equal files for any number of ranks.

    python -m benchmarks.retrieval_size [--pages 200000] [--queries 2000]

It uses the miniature's model. Pages are small, distinct grey images in parquet files, as on the hub. One rank scores
them without interruption; two ranks are killed twice and continued by four. All files except archives are compared.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.mini_mmeb import TRAIN_FOLDER, build_mini_mmeb
from data_prep.mini_model import build_mini_model
from eval.retrieval_results import RETRIEVAL_FILE
from trials.rig.launcher import environment, free_port
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line

_PAGES_A_FILE = 10_000
_PAGE_SIZE = (16, 22)
_KILLS = 2
_SET = "docvqa_test_subsampled_beir"


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.retrieval_size",
        description=first_line(__doc__),
        examples=("python -m benchmarks.retrieval_size --pages 200000 --queries 2000",),
    )
    made.add_argument("--pages", type=int, default=200_000, help="Number of documents in the corpus.")
    made.add_argument("--queries", type=int, default=2_000, help="Number of queries, each with two relevant pages.")
    return made


def main() -> None:
    """Builds the collection, scores it in three ways, prints a table."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options.pages, options.queries)


def run(root: Path, pages: int, queries: int) -> None:
    """Scores, compares, and prints.

    Raises:
        SystemExit: A run failed, or two runs wrote different files.
    """
    with redirect_stdout(sys.stderr):
        build_mini_mmeb(root / "mini", seed=0, scale=0.02)
        build_mini_model(root / "mini" / TRAIN_FOLDER, root / "model", seed=0)
    build(root / "data" / _SET, pages, queries)
    print("| run | s | peak of rank 0's own memory, MB |\n| --- | --- | --- |", flush=True)
    seconds, peak = _run(root, "one", 1)
    print(f"| 1 rank | {seconds:.0f} | {peak:.0f} |", flush=True)
    generator = random.Random(0)
    for number in range(_KILLS):
        after = seconds * generator.uniform(0.2, 0.5)
        _, peak = _run(root, "other", 2, kill_after=after)
        print(f"| 2 ranks, killed (SIGKILL) after {after:.0f} s, kill {number + 1} | | {peak:.0f} |", flush=True)
    seconds, peak = _run(root, "other", 4)
    print(f"| 4 ranks, continuing it | {seconds:.0f} | {peak:.0f} |", flush=True)
    seconds, peak = _run(root, "two", 2)
    print(f"| 2 ranks | {seconds:.0f} | {peak:.0f} |", flush=True)
    compared = [_same_files(root / "one", root / name) for name in ("other", "two")]
    print(f"\n{pages:,} pages, {queries:,} queries; {compared[0]:,} files are the same in all runs, bit for bit.")
    print((root / "one.log").read_text(encoding="utf-8").splitlines()[-4])


def build(folder: Path, pages: int, queries: int) -> None:
    """Writes the collection; the first pixels encode the page's number, so that up to 256^3 pages are distinct."""
    generator = np.random.default_rng(0)
    (folder / "corpus").mkdir(parents=True)
    num_files = -(-pages // _PAGES_A_FILE)
    for part in range(num_files):
        numbers = range(part * _PAGES_A_FILE, min(pages, (part + 1) * _PAGES_A_FILE))
        images = [{"bytes": _page(number, generator), "path": f"{number}.png"} for number in numbers]
        table = pa.table({"corpus-id": list(numbers), "image": images})
        pq.write_table(table, folder / f"corpus/test-{part:05d}-of-{num_files:05d}.parquet", row_group_size=1000)
    asked = generator.choice(pages, queries, replace=False).tolist()
    rows = {
        "queries": {"query-id": list(range(queries)), "query": [f"the page with number {page}" for page in asked]},
        "qrels": {
            "query-id": [number for number in range(queries) for _ in range(2)],
            "corpus-id": [each for page in asked for each in (page, (page + 1) % pages)],
            "score": [2, 1] * queries,
        },
    }
    for name, columns in rows.items():
        (folder / name).mkdir()
        pq.write_table(pa.table(columns), folder / f"{name}/test-00000-of-00001.parquet")


def _page(number: int, generator: np.random.Generator) -> bytes:
    pixels = generator.integers(160, 256, _PAGE_SIZE[::-1], dtype=np.uint8)
    pixels[0, :3] = (number % 256, number // 256 % 256, number // 65_536)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _run(root: Path, name: str, num_ranks: int, kill_after: float | None = None) -> tuple[float, float]:
    """Seconds of a run, and the peak anonymous memory of its first rank in MB."""
    command = [
        *(sys.executable, "-m", "eval.retrieval", "--model_name", str(root / "model")),
        *("--dataset_name", str(root / "data"), "--encode_output_path", str(root / name)),
        *("--dataloader_num_workers", "1" if num_ranks == 1 else "0", "--batch_tokens", "16384"),
    ]
    port, start = free_port(), time.perf_counter()
    ranks = []
    for rank in range(num_ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": port}
        variables = {**environment(), "MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in place.items()}}
        with open(root / f"{name}.log" if rank == 0 else os.devnull, "w", encoding="utf-8") as log:
            process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)
        ranks.append(process)
    peak, killed = 0.0, False
    while any(process.poll() is None for process in ranks):
        time.sleep(0.2)
        peak = max(peak, _own_memory(ranks[0].pid))
        if kill_after is not None and not killed and time.perf_counter() - start > kill_after:
            for process in ranks:
                os.killpg(process.pid, signal.SIGKILL)
            killed = True
    if not killed and any(process.returncode for process in ranks):
        print((root / f"{name}.log").read_text(encoding="utf-8")[-2000:], file=sys.stderr)
        raise SystemExit(1)
    return time.perf_counter() - start, peak


def _own_memory(pid: int) -> float:
    """Anonymous memory of a process in MB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon")), 0.0)


def _same_files(first: Path, second: Path) -> int:
    """Compares two folders; returns the number of files.

    Raises:
        SystemExit: A file differs, or is in one folder only.
    """
    names = [{path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} for folder in (first, second)]
    if names[0] != names[1]:
        raise SystemExit(f"{first} and {second} hold different files: {sorted(names[0] ^ names[1])[:3]}")
    for name in names[0]:
        if (first / name).read_bytes() != (second / name).read_bytes():
            raise SystemExit(f"{first / name} and {second / name} differ")
    shutil.rmtree(second)
    assert (first / RETRIEVAL_FILE).is_file()
    return len(names[0])


if __name__ == "__main__":
    sys.exit(run_program(main))
