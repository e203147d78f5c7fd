"""The cached step on the device against one plain graph: the grid of trials/exactness.py, thinned out.

The program is one of several ranks on one device:
`python -m benchmarks.gpu.exactness --backend gloo --output ERRORS.json`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.gpu.rows import Figures, LeftOutError, Recorder, Section
from trials.exactness import run_cells
from trials.exactness_grid import BF16_TOLERANCE, CHUNKS, DROPOUT, Cell
from vlm2vec.device import choose_kernels
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.ranks import close_ranks, initialize_ranks

REPOSITORY = Path(__file__).resolve().parents[2]
# (ZeRO stage, trained parameters, dropout), by the row's name
SETTINGS = {
    "zero2_full": (2, "full", 0.0),
    "zero2_dora": (2, "dora", DROPOUT),
    "zero2_dora_bf16": (2, "dora bf16", DROPOUT),
    "zero3_full": (3, "full", DROPOUT),
    "zero1_lora": (1, "lora", 0.0),
    "zero1_full": (1, "full", DROPOUT),
    "zero3_dora": (3, "dora", DROPOUT),
    "zero3_lora_bf16": (3, "lora bf16", 0.0),
    "adapter": (2, "dora adapter dropout", DROPOUT),
    "compiled": (2, "dora compiled", DROPOUT),
}
TINY_ROWS = ("zero2_full", "zero2_dora", "zero2_dora_bf16")
BATCHES = ("mixed", "duplicates across ranks")
RANK_SETTINGS = (SETTINGS["zero2_full"], SETTINGS["zero2_dora"])
_COLLECTIVE_SECONDS = 60
_LONGEST_REASON = 160


def _cells(figures: Figures) -> list[str]:
    replayed = {None: "", True: "bit for bit", False: "NO"}[figures["replayed"]]
    verdict = "yes" if figures["within"] else "NO"
    return [f"{figures['error']:.1e}", f"{figures['bound']:.1e}", verdict, replayed]


SECTION = Section("Exactness on the device", ("largest relative error", "bound", "within", "dropout replayed"), _cells)
RANKS_SECTION = Section("Exactness of two ranks on one device", SECTION.columns, _cells)


def grid(setting: tuple[int, str, float]) -> list[Cell]:
    """Cells of one setting: each kind of batch in all sizes of chunks."""
    return [Cell(*setting, batch, chunks) for batch in BATCHES for chunks in CHUNKS]


def summarize(cells: Sequence[Cell], errors: Sequence[float], device: torch.device) -> Figures:
    """The cell that is closest to its bound, or furthest beyond it."""
    bounds = [_bound(cell, device) for cell in cells]
    finite = [error for error in errors if math.isfinite(error)]
    error, bound = max(zip(errors, bounds, strict=True), key=lambda each: each[0] / each[1])
    has_dropout = any(cell.dropout for cell in cells)
    return {
        "error": error if math.isfinite(error) else max(finite, default=math.nan),
        "bound": bound,
        "within": error <= bound,
        "replayed": len(finite) == len(errors) if has_dropout else None,
    }


def _bound(cell: Cell, device: torch.device) -> float:
    """The bound of a cell. On a GPU attention's backward pass adds in any order, so bfloat16 never repeats exactly."""
    return BF16_TOLERANCE if "bf16" in cell.kind and device.type != "cpu" else cell.tolerance


def _summary(cells: Sequence[Cell], device: torch.device) -> Figures:
    return summarize(cells, list(run_cells(cells, device)), device)


def run(recorder: Recorder, device: torch.device, tiny: bool, rows: Sequence[str] = ()) -> None:
    """One row per setting, in this process: those of `SETTINGS` with these names, or all."""
    recorder.begin(SECTION)
    allow_tf32 = torch.backends.cudnn.allow_tf32
    choose_kernels(deterministic=False, is_float32=True)
    for name in rows or (TINY_ROWS if tiny else SETTINGS):
        setting = SETTINGS[name]
        cells = grid(setting)[-1:] if tiny else grid(setting)
        recorder.row(
            f"ZeRO-{setting[0]}, {setting[1]}, dropout {setting[2]}",
            partial(_summary, cells, device),
        )
    torch.backends.cudnn.allow_tf32 = allow_tf32


def run_two_ranks(recorder: Recorder, device: torch.device, tiny: bool, seconds: float) -> None:
    """Runs two ranks in separate processes with a time limit. NCCL refuses two ranks on one GPU."""
    recorder.begin(RANKS_SECTION)
    recorder.row("2 ranks, gloo", lambda: _two_ranks("gloo", device, tiny, seconds))


def _two_ranks(backend: str, device: torch.device, tiny: bool, seconds: float) -> Figures:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        output, log = Path(folder) / "errors.json", Path(folder) / "log"
        command = [sys.executable, "-m", __spec__.name, "--backend", backend, "--output", str(output)]
        command += ["--tiny"] if tiny else []
        job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
        with log.open("wb") as words:
            ranks = [
                subprocess.Popen(
                    command,
                    cwd=REPOSITORY,
                    env={**os.environ, **job, "RANK": str(rank)},
                    stdout=words,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                for rank in range(2)
            ]
        try:
            _wait(ranks, seconds)
        finally:
            for rank in ranks:
                if rank.poll() is None:
                    os.killpg(rank.pid, signal.SIGKILL)
                rank.wait()
        if not output.exists():
            sys.stderr.write(log.read_text(errors="replace")[-6000:])
            raise LeftOutError(_last_error(log.read_text(errors="replace"), seconds))
        cells = _rank_cells(tiny)
        return summarize(cells, json.loads(output.read_text()), device)


def _wait(ranks: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Waits until all have ended, one has failed, or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        codes = [rank.poll() for rank in ranks]
        if any(codes) or None not in codes:
            return
        time.sleep(0.1)


def _last_error(log: str, seconds: float) -> str:
    """The line of a log that names the error."""
    lines = [line.strip().replace("|", "/") for line in log.splitlines() if "rror" in line]
    return f"no result: {lines[-1][:_LONGEST_REASON]}" if lines else f"no result within {seconds:.0f} s"


def _rank_cells(tiny: bool) -> list[Cell]:
    return [cell for setting in RANK_SETTINGS for cell in (grid(setting)[-1:] if tiny else grid(setting))]


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.gpu.exactness",
        description=first_line(__doc__),
        examples=("python -m benchmarks.gpu.exactness --backend gloo --output errors.json",),
    )
    made.add_argument(
        "--backend", required=True, metavar="NAME", help="Backend of torch.distributed, such as gloo or nccl."
    )
    made.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON file to write.")
    made.add_argument("--tiny", action="store_true", help="Use a tiny model, on the CPU if there is no GPU.")
    return made


def main() -> None:
    """Runs one rank; all ranks use the first device."""
    options = parser().parse_args()
    device = initialize_ranks(_COLLECTIVE_SECONDS, options.backend)
    choose_kernels(deterministic=False, is_float32=True)
    errors = list(run_cells(_rank_cells(options.tiny), device))
    if dist.get_rank() == 0:
        options.output.write_text(json.dumps(errors))
    dist.barrier()
    close_ranks()


if __name__ == "__main__":
    sys.exit(run_program(main))
