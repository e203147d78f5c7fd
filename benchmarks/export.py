"""Peak memory of an export, compared with the size of the largest file that it writes.

    python -m benchmarks.export

The checkpoints are synthetic: files as ZeRO's ranks write them, with random weights and Adam's moments, without
training. A separate process exports each one; its anonymous memory (what it allocates, without mapped files) is sampled
every millisecond. `peak` does not include what Python and the libraries need before anything is read; `process` does.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VModel
from vlm2vec.errors import run_program
from vlm2vec.export import export
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.ranks import prepare_environment
from vlm2vec.training.checkpoints.writer import ENCODER_FOLDER, ENGINE_TAG, RECORD, RunRecord

Shapes = Mapping[str, Sequence[int]]
MEGABYTE = 1_000_000
_M_MMAP_THRESHOLD = -3  # mallopt(3)


@dataclass(frozen=True)
class Measured:
    """One export. All sizes are in bytes; `peak` excludes what the process needed before, `process` includes it."""

    peak: int
    process: int
    largest_file: int
    written: int
    checkpoint: int
    seconds: float


@dataclass(frozen=True)
class Request:
    """What to export, and how."""

    checkpoint: str
    output: str
    max_shard_size: str
    merge_lora: bool = False


def model_config(num_layers: int) -> Phi3VConfig:
    """A small width, so that many tensors fill a file: 7 MB in float32 per layer, the largest tensor 3 MB."""
    vision = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Phi3VConfig(
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=2048,
        pad_token_id=0,
        vision_config=vision,
        architectures=["Phi3VForCausalLM"],
    )


def write_checkpoint(folder: Path, stage: int, num_ranks: int, shapes: Shapes, arguments: dict[str, Any]) -> None:
    """Writes the files of ranks that trained tensors of these shapes, with random master weights and zero moments."""
    engine = folder / ENGINE_TAG
    engine.mkdir(parents=True)
    (folder / ENCODER_FOLDER).mkdir(exist_ok=True)
    sizes = {f"backbone.{name}": torch.Size(shape) for name, shape in shapes.items()}
    numbers = [size.numel() for size in sizes.values()]
    per_rank = sum(math.ceil(n / num_ranks) for n in numbers) if stage == 3 else math.ceil(sum(numbers) / num_ranks)
    for rank in range(num_ranks):
        masters = torch.rand(per_rank, generator=torch.Generator().manual_seed(rank))
        moments = {name: torch.zeros(per_rank) for name in ("exp_avg", "exp_avg_sq")}
        state = {
            "zero_stage": stage,
            "partition_count": num_ranks,
            "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups": [masters],
            "optimizer_state_dict": {"state": {0: moments}},
        }
        torch.save({"optimizer_state_dict": state}, engine / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3 or rank == 0:
            name = f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
            # ZeRO-1 and 2 also store the module's own weights.
            module = (
                {} if stage == 3 else {name: torch.zeros(size, dtype=torch.bfloat16) for name, size in sizes.items()}
            )
            torch.save({"module": module, "param_shapes": [sizes]}, engine / name)
    arguments = {"bf16": False, "max_len": 256, "global_batch_size": 1, **arguments}
    RunRecord(1, num_ranks, stage, arguments, {}, {}).write(folder / RECORD)


def write_full(folder: Path, stage: int, num_ranks: int, num_layers: int) -> None:
    """Writes a checkpoint of full fine-tuning, without its base model."""
    config = model_config(num_layers)
    write_checkpoint(
        folder, stage, num_ranks, Phi3VModel.tensor_shapes(config), {"lora": False, "model_name": "absent"}
    )
    config.save_pretrained(folder / ENCODER_FOLDER)


def write_lora(folder: Path, stage: int, num_ranks: int, num_layers: int) -> None:
    """Writes a checkpoint of an adapter, with its base model in `base` beside the ranks' files."""
    config, base = model_config(num_layers), folder / "base"
    settings = LoraConfig(r=8, target_modules=list(Phi3VModel.lora_targets), use_dora=True)
    with torch.device("meta"):
        adapted = get_peft_model(Phi3VModel(config), settings)
    adapter = {name: tuple(value.shape) for name, value in adapted.named_parameters() if value.requires_grad}
    write_checkpoint(folder, stage, num_ranks, adapter, {"lora": True, "model_name": str(base)})
    settings.save_pretrained(str(folder / ENCODER_FOLDER))
    config.save_pretrained(base)
    weights = {name: torch.rand(shape) for name, shape in Phi3VModel.tensor_shapes(config).items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


def measure(*requests: Request, python: str = sys.executable) -> list[Measured]:
    """Exports one after the other in a separate process."""
    message = json.dumps([dataclasses.asdict(request) for request in requests])
    done = subprocess.run(
        [python, "-m", "benchmarks.export", message],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])
    found = []
    for request, line in zip(requests, done.stdout.splitlines()[-len(requests) :], strict=True):
        sizes = [file.stat().st_size for file in Path(request.output).glob("*.safetensors")]
        on_disk = sum(file.stat().st_size for file in (Path(request.checkpoint) / ENGINE_TAG).iterdir())
        found.append(Measured(**json.loads(line), largest_file=max(sizes), written=sum(sizes), checkpoint=on_disk))
    return found


def _export_measured(requests: list[dict[str, Any]]) -> None:
    """The child process: prints one line per export."""
    # glibc returns freed tensors of more than 32 MB, which a real model has, to the system at once. It must do the same
    # with these smaller ones, or the result would show malloc's behaviour.
    libc = ctypes.CDLL(None)
    if libc.mallopt(_M_MMAP_THRESHOLD, MEGABYTE) != 1:
        raise RuntimeError("mallopt refuses M_MMAP_THRESHOLD")
    prepare_environment()
    import deepspeed.utils.zero_to_fp32  # noqa: F401 - imported before anything is read

    Phi3VModel.tensor_shapes(model_config(1))  # transformers imports many of its modules only now
    for request in requests:
        gc.collect()
        libc.malloc_trim(0)  # memory that malloc kept from an earlier export would hide this one's
        before = _anonymous_bytes()
        with _PeakWatch() as watch:
            started = time.perf_counter()
            export(
                Path(request["checkpoint"]),
                Path(request["output"]),
                merge_lora=request["merge_lora"],
                max_shard_size=request["max_shard_size"],
            )
            seconds = time.perf_counter() - started
        print(json.dumps({"peak": watch.peak - before, "process": watch.peak, "seconds": seconds}))


class _PeakWatch:
    """Samples the process's anonymous memory in a separate thread; `peak` in bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _PeakWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self.peak = max(self.peak, _anonymous_bytes())


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


def parser() -> Parser:
    """The command line."""
    return Parser(
        prog="python -m benchmarks.export", description=first_line(__doc__), examples=("python -m benchmarks.export",)
    )


def main() -> None:
    """Prints the table in Markdown."""
    parser().parse_args()
    columns = ["run", "ranks", "checkpoint", "written", "largest file", "peak", "peak / file", "process", "seconds"]
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for stage, num_ranks, is_lora in ((1, 2, False), (2, 4, False), (3, 4, False), (2, 2, True)):
        with tempfile.TemporaryDirectory(prefix="benchmark-export-") as root:
            checkpoint = Path(root) / "checkpoint"
            (write_lora if is_lora else write_full)(checkpoint, stage, num_ranks, num_layers=80)
            (found,) = measure(Request(str(checkpoint), f"{root}/out", "50MB", is_lora))
        sizes = [
            f"{size / MEGABYTE:,.0f} MB" for size in (found.checkpoint, found.written, found.largest_file, found.peak)
        ]
        name = f"ZeRO-{stage}, {'DoRA merged into its base' if is_lora else 'full'}"
        ratio, process = f"{found.peak / found.largest_file:.2f}", f"{found.process / MEGABYTE:,.0f} MB"
        print(
            "| " + " | ".join(map(str, [name, num_ranks, *sizes, ratio, process, f"{found.seconds:.1f}"])) + " |",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("["):
        _export_measured(json.loads(sys.argv[1]))
    else:
        sys.exit(run_program(main))
