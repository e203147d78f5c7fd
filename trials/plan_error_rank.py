"""One rank that builds an engine of every shipped configuration and records its memory.

The bytes of tensors are counted, which do not depend on the device. On a CPU, offloaded tensors are in the same memory
and are counted with the others.
"""

from __future__ import annotations

import gc
import json
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

from trials.rig.collectives import Collectives
from trials.rig.engines import FETCH_WHEN_USED, constant
from trials.rig.launcher import REPOSITORY
from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec.contrastive.reduction import gradient_reduction
from vlm2vec.errors import run_program
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.packing import TokenBudget
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.plan.meter import TensorMeter
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.training.encoder import build_encoder
from vlm2vec.training.engine import build_engine
from vlm2vec.training.flags.engine_file import read_engine_file
from vlm2vec.training.flags.run import RunSettings, parse_arguments
from vlm2vec.training.preflight.graph_memory import largest_chunk

KINDS = {
    "full bf16": ["--bf16"],
    "full fp32, checkpointed": ["--gradient_checkpointing"],
    "LoRA bf16": ["--bf16", "--lora"],
}
CASES = [
    ("zero1", "full bf16"),
    ("zero2", "full bf16"),
    ("zero2", "LoRA bf16"),
    ("zero2_offload", "full bf16"),
    ("zero3", "full fp32, checkpointed"),
    ("zero3", "LoRA bf16"),
    ("zero3_offload", "full bf16"),
]
CHUNK_TOKENS = 300
# Small buckets, because large ones would hide the rest of a tiny model; every weight is fetched when it is used.
BUCKET = 60_000
SMALL = {
    1: {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET},
    3: {"reduce_bucket_size": BUCKET, **FETCH_WHEN_USED},
}


@dataclass(frozen=True)
class Measured:
    """Bytes of one engine: at rest between steps, and the peak while chunks run.

    Attributes:
        shape: Rows and width of the chunk that ran; each row contains the largest image.
        gathered: What ZeRO-3 gathered in one call forward and backward, in bytes of all weights that run.
    """

    engine: str
    kind: str
    shape: tuple[int, int]
    at_rest: int
    peak: int
    gathered: float


def settings_of(kind: str, model: Path, engine_file: Path) -> RunSettings:
    """A run's settings for one of `KINDS`."""
    flags = ["--model_name", str(model), "--dataset_name", "-", "--output_dir", "-", "--max_steps", "1"]
    arguments = parse_arguments(["--deepspeed", str(engine_file), "--global_batch_size", "2", *flags, *KINDS[kind]])
    return arguments.resolve(2, read_engine_file(engine_file))


def settings(engine: str, folder: Path, owner: str) -> Path:
    """Writes a shipped configuration with small buckets to a file for its owner."""
    config = json.loads((REPOSITORY / "ds_configs" / f"{engine}.json").read_text())
    config["zero_optimization"] |= SMALL[3 if config["zero_optimization"]["stage"] == 3 else 1]
    path = folder / f"{engine}.{owner}.json"
    path.write_text(json.dumps(config))
    return path


def measure(engine_name: str, kind: str, model: Path, folder: Path) -> Measured:
    """Runs two steps of two chunks each, and measures the second, in which the optimizer's moments exist."""
    made = settings_of(kind, model, settings(engine_name, folder, f"rank{dist.get_rank()}"))
    encoder = build_encoder(made.encoder)
    dtype = made.encoder.precision.compute
    chunk = largest_chunk(ItemEncoderInputs(encoder.processor, 256, dtype), TokenBudget(CHUNK_TOKENS))
    meter = TensorMeter("cpu")
    meter.count([*encoder.parameters(), *encoder.buffers(), chunk.inputs["pixel_values"]])
    collectives = Collectives()
    with meter:
        engine = build_engine(encoder, made.engine, constant)
        for step in range(2):
            gc.collect()
            at_rest = meter.alive
            meter.reset_peak()
            with gradient_reduction(engine)(engine, 2) as before_backward:
                for number in range(2):
                    with collectives if (step, number) == (1, 1) else nullcontext():
                        inputs = chunk.arguments(engine.device, dummy_image=False)
                        vectors = engine(**inputs)
                        before_backward()
                        engine.backward(vectors[:, :7].sum(), scale_wrt_gas=False)
                    del vectors, inputs
                peak = meter.peak
            engine.step()
    gathered = sum(size for _, kind_of, size in collectives.seen if kind_of == "_allgather_base_")
    unused = {id(each) for part in encoder.base.unused_modules() for each in part.parameters()}
    running = [each for each in encoder.parameters() if id(each) not in unused]
    total = sum(getattr(each, "ds_numel", each.numel()) * each.element_size() for each in running)
    rows, width = chunk.inputs["input_ids"].shape
    engine.destroy()
    return Measured(engine_name, kind, (rows, width), at_rest, peak, gathered / total)


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m trials.plan_error_rank",
        description=first_line(__doc__),
        examples=("python -m trials.plan_error_rank --model_name demo/untrained --output held.json",),
    )
    made.add_argument("--model_name", type=Path, required=True, metavar="DIR", help="Folder of a small model.")
    made.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON file to write.")
    return made


def main() -> None:
    """Measures every case; rank 0 writes the results."""
    options = parser().parse_args()
    initialize_ranks(COLLECTIVE_SECONDS)
    model, folder = options.model_name, options.output.parent
    measured = [measure(engine, kind, model, folder) for engine, kind in CASES]
    if dist.get_rank() == 0:
        options.output.write_text(json.dumps([asdict(each) for each in measured]))
    close_ranks()


if __name__ == "__main__":
    sys.exit(run_program(main))
