"""Times the evaluation.

python -m benchmarks.evaluation speed --model_name MODEL --dataset_name MMEB-eval --image_dir MMEB-eval/images
python -m benchmarks.evaluation run --model_name MODEL --dataset_name FOLDER --image_dir FOLDER/images --output_dir OUT

`speed` compares with the original's loop: batches of 16 in the order of the data, in one process that also decodes, no
item recognised as encoded before. `run` scores a whole folder and prints time and memory as they go.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from eval import mmeb
from vlm2vec import VLM2Vec
from vlm2vec.errors import run_program
from vlm2vec.evaluation.datasets import EvalData, read_data

ORIGINAL_BATCH = 16
_SAMPLED_BATCHES = 60
_SECONDS_BETWEEN_LINES = 20.0


def main() -> None:
    """Runs one of the two from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("what", choices=("speed", "run"))
    for name in ("model_name", "dataset_name", "image_dir"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--output_dir", help="of `run`; taken up if it holds an unfinished run")
    parser.add_argument("--num_crops", help="as for eval.mmeb")
    options = parser.parse_args()
    flags = ["--model_name", options.model_name, "--dataset_name", options.dataset_name]
    flags += ["--image_dir", options.image_dir] + (["--num_crops", options.num_crops] if options.num_crops else [])
    if options.what == "speed":
        speed(flags, options.model_name, options.dataset_name, Path(options.image_dir))
    else:
        run([*flags, "--encode_output_path", options.output_dir or "scores"])


def speed(flags: list[str], model_name: str, dataset_name: str, image_dir: Path) -> None:
    """Prints what both ways cost, on the same model and data, one after the other.

    CPU seconds count worker processes too and, unlike seconds, do not see what else the machine does.
    """
    data, _ = read_data(dataset_name, ["all"])
    entries = sum(len(rows.queries) + len(rows.candidates) for rows in data.datasets)
    sets = sum(len(np.unique(rows.queries)) + len(np.unique(rows.candidates)) for rows in data.datasets)
    encoder = VLM2Vec.from_pretrained(model_name)
    plain = _cost(lambda: _original_loop(encoder, data, image_dir))
    plain = [each / (_SAMPLED_BATCHES * ORIGINAL_BATCH) for each in plain]
    with tempfile.TemporaryDirectory() as output:
        ours = _cost(lambda: mmeb.main([*flags, "--encode_output_path", output]))
    print(f"\nthe original's loop was measured on {_SAMPLED_BATCHES} batches of {ORIGINAL_BATCH} all over the data;")
    print("eval.mmeb from its arguments to written scores, the model's load included\n")
    print("| what the original encodes | items | its loop: s, CPU s | eval.mmeb: s, CPU s | ratio: s, CPU s |")
    print("| --- | --- | --- | --- | --- |")
    for name, count in (("every query and candidate", entries), ("each once in a dataset and side", sets)):
        theirs = [each * count for each in plain]
        cells = " | ".join(f"{one:.0f}, {cpu:.0f}" for one, cpu in (theirs, ours))
        ratios = ", ".join(f"{their / our:.1f}" for their, our in zip(theirs, ours, strict=True))
        print(f"| {name} | {count:,} | {cells} | {ratios} |")


def _cost(work: Callable[[], object]) -> list[float]:
    """Seconds, and CPU seconds of this process and the workers that it started and ended."""
    start, before = time.perf_counter(), os.times()
    work()
    after = os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    return [time.perf_counter() - start, cpu]


def _original_loop(encoder: VLM2Vec, data: EvalData, image_dir: Path) -> None:
    """Batches of 16 in the order of the data, spread evenly over all queries and candidates."""
    items = data.items
    order = np.concatenate(list(chain.from_iterable((rows.queries, rows.candidates) for rows in data.datasets)))
    for start in np.linspace(0, len(order) - ORIGINAL_BATCH, _SAMPLED_BATCHES).astype(int):
        batch = order[start : start + ORIGINAL_BATCH]
        encoder.encode(
            texts=[items.text(index) for index in batch],
            images=[str(image_dir / items.image(index)) if items.image(index) else None for index in batch],
            batch_tokens=10**9,
            strict_original=True,
        )


def run(flags: list[str]) -> None:
    """Scores in a process of its own and prints its time and memory: own (anonymous) and mapped from files."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "eval.mmeb", *flags])
    peak, last_line = 0.0, start
    while process.poll() is None:
        time.sleep(0.5)
        own, mapped = _memory(process.pid)
        peak = max(peak, own)
        if time.perf_counter() - last_line >= _SECONDS_BETWEEN_LINES:
            last_line = time.perf_counter()
            print(f"[{last_line - start:5.0f} s] {own:.0f} MB own, {mapped:.0f} MB mapped", flush=True)
    print(f"{time.perf_counter() - start:.0f} s, peak {peak:.0f} MB own memory, {torch.get_num_threads()} threads")
    if process.returncode:
        raise SystemExit(process.returncode)


def _memory(pid: int) -> tuple[float, float]:
    """Anonymous and file-backed resident memory of a process, MB; zeros when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return tuple(int(values.get(name, "0")) / 1000 for name in ("RssAnon", "RssFile"))  # type: ignore[return-value]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(run_program(main))
