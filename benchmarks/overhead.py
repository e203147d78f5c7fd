"""The overhead of caching: the cached step compared with a plain step, on a batch that fits into memory as one graph.

    python -m benchmarks.overhead [--rounds 5]

Both use the same engine. All items have the same length, so that padding does not matter.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.cached_step import UNCLIPPED, CachedStepRun
from benchmarks.workloads import Workload
from trials.rig.engines import build_engine
from vlm2vec.backbones.interface import ProcessedItem
from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VModel
from vlm2vec.batches import ChunkSizes
from vlm2vec.contrastive import ContrastiveLoss, Pairs
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import run_program
from vlm2vec.inputs.packing import TokenBudget
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.ranks import close_ranks, initialize_ranks

PAIRS, LENGTH, CHUNKS = 64, 64, 8
TEMPERATURE, LEARNING_RATE = 0.05, 1e-4
ALL = 10**6


def texts() -> Workload:
    """Texts of one length, and a model wide enough that a chunk's fixed costs do not matter."""
    torch.manual_seed(0)
    config = Phi3VConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
        },
    )
    encoder = VLM2Vec(Phi3VModel(config), processor=None, max_len=None).train()  # type: ignore[arg-type]
    items = [ProcessedItem(torch.randint(3, 2048, (LENGTH,))) for _ in range(2 * PAIRS)]
    return Workload("texts", encoder, items, [[(row, PAIRS + row) for row in range(PAIRS)]], LENGTH)


def plain_step(workload: Workload) -> Callable[[], float]:
    """A step with the whole batch in one graph, without a cache."""
    engine = build_engine(copy.deepcopy(workload.encoder), 2, LEARNING_RATE, **UNCLIPPED)
    ids = torch.stack([item.input_ids for item in workload.items])
    rows = torch.arange(PAIRS)
    loss_fn = ContrastiveLoss(TEMPERATURE)

    def step() -> float:
        vectors = engine(input_ids=ids, attention_mask=torch.ones_like(ids))
        loss, _ = loss_fn(vectors, Pairs(rows, PAIRS + rows), range(PAIRS))
        engine.backward(loss)
        engine.step()
        return float(loss.detach())

    return step


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m benchmarks.overhead",
        description=first_line(__doc__),
        examples=("python -m benchmarks.overhead --rounds 5",),
    )
    made.add_argument("--rounds", type=int, default=5, help="Number of rounds; what is compared takes turns.")
    return made


def main() -> None:
    """Prints the table in Markdown."""
    options = parser().parse_args()
    initialize_ranks(600)
    workload = texts()
    budget = TokenBudget(2 * PAIRS * LENGTH // CHUNKS)

    def cached(keep_graphs: int) -> Callable[[], float]:
        run = CachedStepRun(workload, ChunkSizes(budget, None, keep_graphs), TEMPERATURE, LEARNING_RATE)
        return lambda: run(workload.batches[0])

    plain = "plain, one graph"
    steps = {
        plain: plain_step(workload),
        f"cached, {CHUNKS} chunks, no graph kept": cached(0),
        f"cached, {CHUNKS} chunks, one graph kept (the default on a CPU)": cached(1),
        f"cached, {CHUNKS} chunks, all graphs kept": cached(ALL),
    }
    losses = {name: step() for name, step in steps.items()}
    if max(losses.values()) - min(losses.values()) > 1e-4:
        raise SystemExit(f"the steps compute different losses: {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    print(f"{2 * PAIRS} texts of {LENGTH} tokens\n\n| step | time, plain = 1 |\n| --- | --- |")
    for name, times in seconds.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(times, seconds[plain], strict=True))
        print(f"| {name} | {ratio:.2f} |")
    close_ranks()


if __name__ == "__main__":
    sys.exit(run_program(main))
