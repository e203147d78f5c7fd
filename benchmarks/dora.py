"""This project's DoRA compared with PEFT's: a step of the miniature, and the cost of a chunk of the full-size model.

    python -m benchmarks.dora [--work FOLDER] [--rounds 10] [--pairs 128]

The step: the miniature with the adapter of launch/recipes/lora_1024.yaml, on one CPU rank; both run the same batches
from the same weights with the same dropout masks, and the program compares their losses. The chunk: forward and
backward of ten images with 4 crops on the meta device, measured with few layers and extrapolated to all of them.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.cached_step import CachedStepRun
from benchmarks.operators import OperatorCosts
from benchmarks.workloads import NUM_CROPS, Workload, miniature
from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VProcessor
from vlm2vec.batches import ChunkSizes
from vlm2vec.choices import LoraSettings
from vlm2vec.dora import kept_norms
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import run_program
from vlm2vec.inputs.packing import TokenBudget
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.plan.meta import MetaModel
from vlm2vec.plan.passes import ChunkShape
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.training.flags.run import parse_arguments
from vlm2vec.training.settings import EncoderSettings

TEMPERATURE = 0.02
LEARNING_RATE = 1e-4
LOSS_TOLERANCE = 1e-4
LORA = LoraSettings(r=8, alpha=64)
FLAGS = "--model_name - --dataset_name - --output_dir - --deepspeed - --global_batch_size 8 --max_steps 1 --bf16 --lora"
PEFT, OURS, PLAIN = "PEFT's DoRA", "this code's DoRA", "plain LoRA"
LAYERS = (PEFT, OURS, PLAIN)
# The miniature's own budget, and a smaller one, with which the fixed cost of a call counts more.
BUDGETS = (2048, 512)
# Ten images with all their crops, 757 tokens each: a chunk of 8,192 tokens.
CHUNK = ChunkShape(rows=10, width=757, image_sizes=((336, 336),))
DROPOUTS = {
    "none": "--lora_dropout 0",
    "input": "--lora_dropout 0.1",
    "adapter": "--lora_dropout 0.1 --lora_dropout_on adapter",
}


@contextmanager
def peft_dora() -> Iterator[None]:
    """Adapters that are added inside the context keep PEFT's DoRA layers."""
    with patch("vlm2vec.lora.install_dora"):
        yield


@dataclass(frozen=True)
class Cost:
    """The cost of one chunk, forward and backward."""

    flops: float
    bytes_moved: float

    def plus(self, other: Cost, share: float) -> Cost:
        """This cost and `share` times the other."""
        return Cost(self.flops + share * other.flops, self.bytes_moved + share * other.bytes_moved)


def adapted(encoder: VLM2Vec, dropout: float, layers: str) -> VLM2Vec:
    """A copy of an encoder with a fresh adapter of one of `LAYERS`."""
    encoder = copy.deepcopy(encoder)
    with peft_dora() if layers == PEFT else nullcontext():
        encoder.add_lora(replace(LORA, dropout=dropout, use_dora=layers != PLAIN))
    return encoder.train()


def step_seconds(workload: Workload, rounds: int, dropout: float) -> dict[str, list[float]]:
    """Processor seconds of steps with each of `LAYERS`, alternating.

    Raises:
        SystemExit: PEFT's DoRA and this project's compute different losses.
    """
    sizes = ChunkSizes(TokenBudget(workload.chunk_tokens), None, keep_graphs=1)
    steps = {
        layers: CachedStepRun(
            replace(workload, encoder=adapted(workload.encoder, dropout, layers)), sizes, TEMPERATURE, LEARNING_RATE
        )
        for layers in LAYERS
    }
    seconds: dict[str, list[float]] = {layers: [] for layers in steps}
    for number in range(rounds + 1):
        losses = {}
        for layers, step in steps.items():
            torch.manual_seed(number)
            start = time.process_time()
            losses[layers] = step(workload.batches[number % len(workload.batches)])
            seconds[layers].append(time.process_time() - start)
        if abs(losses[OURS] - losses[PEFT]) > LOSS_TOLERANCE * abs(losses[PEFT]):
            raise SystemExit(f"round {number}: the losses differ, PEFT's {losses[PEFT]}, this code's {losses[OURS]}")
    return {layers: each[1:] for layers, each in seconds.items()}  # the first one also warms up


def encoder_settings(flags: str = "") -> EncoderSettings:
    """The encoder settings of a run; they do not depend on the engine."""
    return parse_arguments(f"{FLAGS} {flags}".split()).resolve(1, {"zero_optimization": {"stage": 2}}).encoder


def chunk_costs(dropout: str, is_peft: bool, config: Phi3VConfig, shape: ChunkShape) -> list[Cost]:
    """Costs of a step's first call and of a later one, at the model's full depth."""
    with peft_dora() if is_peft else nullcontext():
        processor = Phi3VProcessor.without_tokenizer(config, num_crops=NUM_CROPS)
        model = MetaModel(config, encoder_settings(f"--lora_r 8 {dropout}"), processor)
        shallow = [_two_calls(model.encoder(depths), shape) for depths in ((1, 2), (2, 2), (1, 3))]
    more_language, more_vision = (depth - few for depth, few in zip(model.depths, (1, 2), strict=True))
    return [
        base.plus(deeper, more_language).plus(base, -more_language).plus(wider, more_vision).plus(base, -more_vision)
        for base, deeper, wider in zip(*shallow, strict=True)
    ]


def _two_calls(encoder: VLM2Vec, shape: ChunkShape) -> list[Cost]:
    """Two calls of one step."""
    encoder.gradient_checkpointing_disable()
    arguments = shape.arguments(encoder.processor, torch.bfloat16, torch.device("meta"))
    costs = []
    with kept_norms(encoder):
        for _ in range(2):
            with OperatorCosts() as meter:
                encoder(**arguments).sum().backward()
            costs.append(Cost(meter.flops, meter.bytes_moved))
    return costs


def print_steps(workload: Workload, rounds: int) -> None:
    """Prints the table of steps in Markdown."""
    print(f"| step | tokens a chunk | dropout | {', s | '.join(LAYERS)}, s | PEFT / this code |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for budget in BUDGETS:
        for dropout in (0.0, 0.1):
            seconds = step_seconds(replace(workload, chunk_tokens=budget), rounds, dropout)
            best = {layers: min(each) for layers, each in seconds.items()}
            cells = " | ".join(f"{each:.2f}" for each in best.values())
            print(f"| {workload.name} | {budget:,} | {dropout} | {cells} | {best[PEFT] / best[OURS]:.2f} |", flush=True)


def print_chunks(config: Phi3VConfig, shape: ChunkShape) -> None:
    """Prints the table of a chunk's costs in Markdown."""
    print("| dropout on | layers | call of a step | TFLOP | GB moved | TFLOP, PEFT = 1 | GB, PEFT = 1 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    peft = {}
    for dropout, flags in DROPOUTS.items():
        if dropout != "adapter":  # PEFT does not have it; it is compared with PEFT's dropout on the input
            peft[dropout] = chunk_costs(flags, True, config, shape)[1]
            print(f"| {dropout} | PEFT's DoRA | every | {_cells(peft[dropout], peft[dropout])} |", flush=True)
        baseline = peft["none" if dropout == "none" else "input"]
        for call, cost in zip(("first", "later"), chunk_costs(flags, False, config, shape), strict=True):
            print(f"| {dropout} | this code | {call} | {_cells(cost, baseline)} |", flush=True)


def _cells(cost: Cost, baseline: Cost) -> str:
    ratios = f"{cost.flops / baseline.flops:.2f} | {cost.bytes_moved / baseline.bytes_moved:.2f}"
    return f"{cost.flops / 1e12:.1f} | {cost.bytes_moved / 1e9:,.0f} | {ratios}"


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.dora",
        description=first_line(__doc__),
        examples=("python -m benchmarks.dora --rounds 10 --pairs 128",),
    )
    made.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="Folder for the miniature; kept, and used again if it is there. If not given: a temporary one.",
    )
    made.add_argument("--rounds", type=int, default=10, help="Number of timed steps of each.")
    made.add_argument("--pairs", type=int, default=128, help="Pairs per batch.")
    return made


def main() -> None:
    """Prints the tables in Markdown."""
    options = parser().parse_args()
    initialize_ranks(600)
    with tempfile.TemporaryDirectory() as folder:
        print_steps(miniature(options.work or Path(folder), options.pairs, options.rounds + 1), options.rounds)
    print()
    print_chunks(Phi3VConfig(), CHUNK)
    close_ranks()


if __name__ == "__main__":
    sys.exit(run_program(main))
