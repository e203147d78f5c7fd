"""Time and memory of an evaluation of MMEB-eval's size: 36 datasets of 1,000 queries with its candidate counts.

    python -m benchmarks.evaluation_size

It uses the miniature's model, and images that are reused with different texts (benchmarks.synthetic_eval). `eval.mmeb`
runs in a separate process whose memory is read twice per second. Memory mapped from files (embeddings, items) can be
reclaimed by the system at any time and is listed separately.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

from benchmarks.evaluation import build_miniature
from benchmarks.synthetic_eval import build
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line

_SECONDS_BETWEEN_LINES = 20.0


def run(root: Path) -> None:
    """Builds the data, scores it and prints time and memory as they go."""
    with redirect_stdout(sys.stderr):
        dataset, model = build_miniature(root)
        build(dataset / "images", root / "full")
    start = time.perf_counter()
    command = [
        *(sys.executable, "-m", "eval.mmeb", "--model_name", str(model), "--dataset_name", str(root / "full")),
        *("--image_dir", str(root / "full/images"), "--encode_output_path", str(root / "scores")),
    ]
    print("| after, s | own memory, MB | mapped from files, MB |\n| --- | --- | --- |", flush=True)
    with open(root / "output.txt", "w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output)
    peak, last_line = 0.0, start
    while process.poll() is None:
        time.sleep(0.5)
        own, mapped = _memory(process.pid)
        peak = max(peak, own)
        if time.perf_counter() - last_line >= _SECONDS_BETWEEN_LINES:
            last_line = time.perf_counter()
            print(f"| {last_line - start:.0f} | {own:.0f} | {mapped:.0f} |", flush=True)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(process.returncode)
    lines = (root / "output.txt").read_text(encoding="utf-8").splitlines()
    print(f"\n{next(line for line in lines if 'unique items' in line)}.")
    print(f"{seconds:.0f} s from start to written scores, peak {peak:.0f} MB of own memory.")


def _memory(pid: int) -> tuple[float, float]:
    """Anonymous and file-backed resident memory of a process, MB; zeros when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return kilobytes.get("RssAnon", 0) / 1000, kilobytes.get("RssFile", 0) / 1000


def parser() -> Parser:
    """The command line."""
    return Parser(
        prog="python -m benchmarks.evaluation_size",
        description=first_line(__doc__),
        examples=("python -m benchmarks.evaluation_size",),
    )


def main() -> None:
    """Measures in a temporary folder."""
    parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))


if __name__ == "__main__":
    sys.exit(run_program(main))
