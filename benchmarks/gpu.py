"""Training steps of full-size Phi-3.5-V with random weights on one GPU: pairs/s, tokens/s, MFU, memory.

    python -m benchmarks.gpu                     every row; without a GPU they say "not measured"
    python -m benchmarks.gpu --tiny              a model of a few thousand weights on the CPU: shows that all rows run
    python -m benchmarks.gpu --rows chunk_16384  some rows

Global batch 1,024 of MMEB's lengths with 4 crops, one rank, ZeRO-2, bfloat16; decoded pictures lie in the host's memory
and are copied to the device when their chunk runs. Every row is a process of its own and changes one thing of a base. A
row that does not fit says so. MFU counts the model's FLOPs of one forward and backward pass over the items.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
NOT_MEASURED = "not measured"
LORA = "--bf16 --lora --lora_r 8 --lora_alpha 64 --chunk_tokens 8192 --keep_graphs 1 --gradient_checkpointing"
FULL = "--bf16 --chunk_tokens 32768 --keep_graphs 1 --gradient_checkpointing"
_TINY_SHARE = 32  # of the token budgets and of the pairs


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        what: What it is called.
        flags: Of vlm2vec.train; what comes last counts.
        compiled: Whether the decoder layers go through torch.compile.
    """

    what: str
    flags: str
    compiled: bool = False

    @property
    def is_full(self) -> bool:
        """Whether all weights are trained."""
        return "--lora " not in self.flags


ROWS = {
    "lora": Row("LoRA r=8 (DoRA, dropout 0.1), 8,192 tokens a chunk, sdpa, recomputed activations", LORA),
    "chunk_4096": Row("... 4,096 tokens a chunk", f"{LORA} --chunk_tokens 4096"),
    "chunk_16384": Row("... 16,384 tokens a chunk", f"{LORA} --chunk_tokens 16384"),
    "chunk_32768": Row("... 32,768 tokens a chunk", f"{LORA} --chunk_tokens 32768"),
    "eager": Row("... eager attention", f"{LORA} --attn_implementation eager"),
    "flash": Row("... flash-attn's kernel", f"{LORA} --attn_implementation flash_attention_2"),
    "compile": Row("... decoder layers compiled", LORA, compiled=True),
    "no_checkpointing": Row("... activations kept", f"{LORA} --gradient_checkpointing False"),
    "keep_0": Row("... no graph kept", f"{LORA} --keep_graphs 0"),
    "keep_8": Row("... 8 graphs kept", f"{LORA} --keep_graphs 8"),
    "no_dropout": Row("... no dropout, so that pass 1 runs chunks four times as large", f"{LORA} --lora_dropout 0"),
    "plain_lora": Row("... LoRA instead of DoRA", f"{LORA} --lora_use_dora False"),
    "full": Row("all weights, optimizer in the host's memory, 32,768 tokens a chunk", FULL),
    "full_chunk_8192": Row("... 8,192 tokens a chunk", f"{FULL} --chunk_tokens 8192"),
    "full_compile": Row("... decoder layers compiled", FULL, compiled=True),
    "full_no_checkpointing": Row(
        "... 8,192 tokens a chunk, activations kept", f"{FULL} --chunk_tokens 8192 --gradient_checkpointing False"
    ),
}
HEADER = "| run | pairs/s | tokens/s | MFU | peak GiB | pass 1, pass 2, rest |"


def train_arguments(row: Row, tiny: bool) -> Any:
    """The row as a run's arguments."""
    from vlm2vec.training.arguments import parse_arguments

    engine = "zero2_offload" if row.is_full and not tiny else "zero2"
    words = row.flags.split()
    if tiny:
        place = len(words) - 1 - words[::-1].index("--chunk_tokens") + 1
        words[place] = str(int(words[place]) // _TINY_SHARE)
    needed = ["--model_name", "-", "--dataset_name", "-", "--output_dir", "-", "--max_steps", "1000"]
    needed += ["--deepspeed", str(REPOSITORY / f"ds_configs/{engine}.json")]
    return parse_arguments([*needed, "--global_batch_size", str(1024 // _TINY_SHARE if tiny else 1024), *words])


def model_config(arguments: Any, tiny: bool) -> Any:
    """Phi-3.5-V, or the same in small."""
    from vlm2vec.phi3_v import Phi3VConfig

    sizes: dict[str, Any] = {}
    if tiny:
        vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
        sizes = {
            **{"vocab_size": 2048, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0},
            "vision_config": {**vision, "image_size": 28, "patch_size": 7},
        }
    return Phi3VConfig(**sizes, attn_implementation=arguments.model.attn_implementation or "sdpa")


def measure(name: str, tiny: bool, num_steps: int, peak_tflops: float | None) -> dict[str, float]:
    """One row's figures, in this process."""
    from benchmarks.cached_step import PadTokenOnly, laid_out
    from benchmarks.workloads import NUM_CROPS, mmeb_pairs
    from vlm2vec.batches import ChunkSizes, ItemEncoderInputs, TokenBudget
    from vlm2vec.contrastive import CachedStep, ContrastiveLoss, StepChunks, has_dropout
    from vlm2vec.contrastive.clock import OPTIMIZER, PASS_1, PASS_2, StepClock
    from vlm2vec.encoder import VLM2Vec
    from vlm2vec.phi3_v import Phi3VImageProcessor, Phi3VModel, ProcessedItem
    from vlm2vec.training.arguments import NO_GRAD_FACTOR
    from vlm2vec.training.build import prepare_encoder, schedule
    from vlm2vec.training.engine import build_engine, initialize_ranks
    from vlm2vec.training.estimate.meta import MetaModel
    from vlm2vec.training.estimate.model_flops import counted_flops
    from vlm2vec.training.utilization import known_peak_tflops

    arguments = train_arguments(ROWS[name], tiny)
    device = initialize_ranks(600)
    torch.manual_seed(0)
    config = model_config(arguments, tiny)
    peak = peak_tflops or known_peak_tflops(device)
    flops = counted_flops(MetaModel(config, arguments, NUM_CROPS), (peak or 1.0) * 1e12)
    images = Phi3VImageProcessor(NUM_CROPS, config.vision_config.image_size, config.vision_config.patch_size)
    with torch.device(device):
        backbone = Phi3VModel(config).to(torch.bfloat16 if arguments.model.lora else torch.float32)
    encoder = VLM2Vec(backbone, processor=None, max_len=None)  # type: ignore[arg-type]
    encoder = prepare_encoder(encoder, arguments, arguments.model.gradient_checkpointing)
    if ROWS[name].compiled:
        for layer in encoder.base.model.layers:
            layer.compile(dynamic=True)
    engine = build_engine(encoder, arguments, lambda optimizer: schedule(arguments, optimizer), num_ranks=1)
    inputs = ItemEncoderInputs(PadTokenOnly(), None, torch.bfloat16)  # type: ignore[arg-type]
    budget = arguments.training.chunk_tokens
    no_grad = None if has_dropout(engine.module) else NO_GRAD_FACTOR * budget
    sizes = ChunkSizes(TokenBudget(budget), no_grad, int(arguments.training.keep_graphs))
    # One set of crops serves all pictures: their content costs nothing, their number does.
    bank = torch.randn(NUM_CROPS + 1, 3, images.crop_size, images.crop_size, dtype=torch.bfloat16)
    items, (batch,) = mmeb_pairs(arguments.global_batch_size(1), 1, images, lambda shape: bank[: shape[0]])
    chunks, layout = laid_out(batch, items, sizes, inputs)
    if device.type != "cpu":
        chunks = StepChunks(*(pinned(phase) for phase in chunks.phases))
    clock = StepClock(device)
    padding = inputs.chunk([ProcessedItem(torch.tensor([1]))])
    step = CachedStep(engine, ContrastiveLoss(0.02), padding, clock=clock)

    def run(steps: int) -> dict[str, float]:
        for _ in range(steps):
            step(chunks, layout)
            with clock.part(OPTIMIZER):
                engine.step()
        return clock.read()

    run(2)  # kernels are chosen, layers compiled, the optimizer's state made
    parts = run(num_steps)
    used = [items[number] for number in {item for pair in batch for item in pair}]
    lengths = [len(item.input_ids) for item in used]
    crops = sum(len(item.pixel_values) for item in used if item.pixel_values is not None)
    seconds = sum(parts.values()) / num_steps
    needed = flops.of(sum(lengths), sum(length**2 for length in lengths), crops)
    on_device = torch.get_device_module(device).max_memory_allocated() if device.type != "cpu" else 0
    return {
        "pairs_per_second": len(batch) / seconds,
        "tokens_per_second": sum(lengths) / seconds,
        "mfu": needed / (seconds * flops.peak_flops) if peak else 0.0,
        "peak_gib": on_device / 2**30,
        **{part: parts[part] / num_steps / seconds for part in (PASS_1, PASS_2)},
    }


def pinned(phase: Any) -> Any:
    """The phase with its chunks in page-locked memory, as a run's loader leaves them."""
    return type(phase)([chunk.pin_memory() for chunk in phase.chunks], phase.num_chunks, phase.num_image_chunks)


def in_a_process(name: str, flags: Sequence[str]) -> str:
    """The row's cells, measured by a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--measure", name, *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=3600, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        message = (done.stderr.strip().splitlines() or ["no output"])[-1]
        reason = "out of memory" if "out of memory" in done.stderr else f"failed: {message[:120]}"
        return " | ".join([reason.replace("|", "/"), *[""] * 4])
    found = json.loads(lines[-1])
    rest = 1 - found["pass_1"] - found["pass_2"]
    return " | ".join(
        [
            f"{found['pairs_per_second']:.1f}",
            f"{found['tokens_per_second']:,.0f}",
            f"{found['mfu']:.1%}" if found["mfu"] else "peak unknown",
            f"{found['peak_gib']:.1f}" if found["peak_gib"] else "",
            f"{found['pass_1']:.0%}, {found['pass_2']:.0%}, {rest:.0%}",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on the CPU if there is no GPU")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after two others (default %(default)s)")
    parser.add_argument("--peak_tflops", type=float, help="the GPU's, where its name is not known")
    parser.add_argument("--measure", choices=ROWS, metavar="ROW", help="one row in this process, as a line of JSON")
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(measure(options.measure, options.tiny, options.steps, options.peak_tflops)), flush=True)
        return
    flags = ["--steps", str(options.steps), *(["--tiny"] if options.tiny else [])]
    flags += ["--peak_tflops", str(options.peak_tflops)] if options.peak_tflops else []
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{device}{', tiny model, no offload' if options.tiny else ''}\n\n{HEADER}\n{'| --- ' * 6}|", flush=True)
    for name in options.rows:
        is_possible = options.tiny or torch.cuda.is_available()
        cells = in_a_process(name, flags) if is_possible else " | ".join([NOT_MEASURED] * 5)
        print(f"| {ROWS[name].what} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
