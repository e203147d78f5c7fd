"""Padding in a global batch with MMEB's lengths: for chunks that end where the length drops, and for full chunks.

    python -m benchmarks.padding

It packs one rank's share of a global batch of 1,024 pairs on 8 ranks, with 4 crops. No model runs: packing depends on
lengths only.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.workloads import NUM_CROPS, mmeb_pairs, phi3_v_items
from vlm2vec.backbones.phi3_v import Phi3VImageProcessor
from vlm2vec.errors import run_program
from vlm2vec.inputs.packing import PackedItem, TokenBudget, merge
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.training.flags.training import NO_GRAD_FACTOR

PAIRS = 128
BUDGETS = (4_096, 8_192, 16_384, 32_768)
NEVER = 1.0


def padded(chunks: list[list[int]], items: list[PackedItem]) -> int:
    """Number of tokens of padded chunks."""
    return sum(len(chunk) * max(items[index].num_tokens for index in chunk) for chunk in chunks)


def parser() -> Parser:
    """The command line."""
    return Parser(
        prog="python -m benchmarks.padding", description=first_line(__doc__), examples=("python -m benchmarks.padding",)
    )


def main() -> None:
    """Prints the table in Markdown."""
    parser().parse_args()
    make = phi3_v_items(Phi3VImageProcessor(NUM_CROPS), lambda shape: torch.empty(shape[0], 0, 0, 0))
    processed, _ = mmeb_pairs(PAIRS, 1, make)
    items = [PackedItem(len(each.input_ids), each.vision_units, True) for each in processed]
    real = sum(item.num_tokens for item in items)
    print(f"{len(items)} items, {real:,} tokens\n")
    print("| budget | padding before | chunks | padding now | chunks | pass without a graph, before | now |")
    print("| --- " * 7 + "|")
    for budget in BUDGETS:
        cells = [f"{budget:,}"]
        merged_cells = []
        for shortfall in (NEVER, TokenBudget(budget).max_shortfall):
            chunks = TokenBudget(budget, shortfall).pack(items)
            merged = merge(chunks, items, TokenBudget(NO_GRAD_FACTOR * budget, shortfall))
            cells += [f"{padded(chunks, items) / real - 1:.1%}", str(len(chunks))]
            merged_cells.append(f"{padded(merged, items) / real - 1:.1%}, {len(merged)} chunks")
        print(f"| {' | '.join([*cells, *merged_cells])} |")


if __name__ == "__main__":
    sys.exit(run_program(main))
