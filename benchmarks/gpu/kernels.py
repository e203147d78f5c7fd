"""Profiles one step on a GPU kernel by kernel with torch.profiler.

python -m benchmarks.gpu.kernels lora.dora compiled.dora_compiled full.compute
python -m benchmarks.gpu.kernels compiled.dora_kept --host     and which functions of the host launch them
"""

from __future__ import annotations

import cProfile
import io
import pstats
import sys
from collections import defaultdict
from collections.abc import Callable

import torch

from benchmarks.gpu.bench import Bench, Setting, Variant
from benchmarks.gpu.model import MODELS, PHI3_V, Model
from benchmarks.gpu.training import COLUMNS, SECTIONS, cells_of
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.ranks import close_ranks, initialize_ranks

# Categories of kernels; the first whose word is in a kernel's name counts.
_KINDS = {
    "flash": "attention",
    "fmha": "attention",
    "attention": "attention",
    "nvjet": "matrix products",
    "gemm": "matrix products",
    "cutlass": "matrix products",
    "cublas": "matrix products",
    "triton": "compiled elementwise",
    "reduce": "reductions",
    "norm": "reductions",
    "Memcpy": "copies",
    "Memset": "copies",
    "elementwise": "elementwise",
}
_MOST = 40


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.gpu.kernels",
        description=first_line(__doc__),
        examples=(
            "python -m benchmarks.gpu.kernels lora.dora compiled.dora_compiled",
            "python -m benchmarks.gpu.kernels compiled.dora_kept --host",
        ),
    )
    made.add_argument("variants", nargs="+", help="TABLE.ROW of benchmarks.gpu.training, such as lora.dora.")
    made.add_argument("--family", choices=MODELS, default=PHI3_V, help="Model family.")
    made.add_argument("--pairs", type=int, default=24, help="Pairs per step.")
    made.add_argument("--tiny", action="store_true", help="Use a tiny model, on the CPU if there is no GPU.")
    made.add_argument("--host", action="store_true", help="Also list the Python functions, in one more step.")
    return made


def main() -> None:
    """Prints one table per variant."""
    options = parser().parse_args()
    setting = Setting(initialize_ranks(600), Model(options.family, options.tiny), options.pairs, 1, None)
    for name in options.variants:
        table, _, row = name.partition(".")
        print(f"\n### {name}\n", flush=True)
        bench = Bench(SECTIONS[table][1][row], setting)
        print(_report(bench, SECTIONS[table][1][row], options.host), flush=True)
        bench.close()
    close_ranks()


def _report(bench: Bench, variant: Variant, with_host: bool) -> str:
    times: list[tuple[float, int, str]] = []
    host = io.StringIO()

    def around(step: Callable[[], None]) -> None:
        times.extend(_times(step))
        if with_host:
            with cProfile.Profile() as profile:
                step()
            pstats.Stats(profile, stream=host).strip_dirs().sort_stats("tottime").print_stats(_MOST)

    figures = bench.measure(variant, around)
    kinds: dict[str, float] = defaultdict(float)
    for seconds, _, name in times:
        kinds[next((kind for word, kind in _KINDS.items() if word.lower() in name.lower()), "other")] += seconds
    total = sum(kinds.values())
    by_time = sorted(kinds.items(), key=lambda each: each[1], reverse=True)
    lines = [f"{column}: {cell}" for column, cell in zip(COLUMNS, cells_of(figures), strict=True)]
    lines += ["", f"one step: {total:.3f} s of kernels in {sum(calls for _, calls, _ in times):,} launches", ""]
    lines += [f"{kind:24} {seconds:7.3f} s {seconds / total:6.1%}" for kind, seconds in by_time]
    lines += ["", "     ms  calls  kernel"]
    lines += [
        f"{1e3 * seconds:7.1f} {calls:6}  {name[:140]}" for seconds, calls, name in sorted(times)[: -_MOST - 1 : -1]
    ]
    return "\n".join([*lines, host.getvalue()])


def _times(step: Callable[[], None]) -> list[tuple[float, int, str]]:
    """Seconds, calls and name of each kernel (of each operator on a CPU) in one step."""
    on_gpu = torch.cuda.is_available()
    kind = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profile:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    events = [
        (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count, event.key)
        for event in profile.key_averages()
    ]
    return [(microseconds / 1e6, calls, name) for microseconds, calls, name in events if microseconds > 0]


if __name__ == "__main__":
    sys.exit(run_program(main))
