"""One rank of the exactness test: cached steps on an engine against one plain graph over the whole global batch."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from tests.distributed.tiny import tiny_item, tiny_model
from vlm2vec.batches.collate import ItemEncoderInputs
from vlm2vec.batches.packing import FixedCounts, Packing, TokenBudget
from vlm2vec.contrastive import CachedStep, ContrastiveLoss, Pairs, StepLayout
from vlm2vec.encoder import VLM2Vec
from vlm2vec.lora import LoraSettings
from vlm2vec.phi3_v import ProcessedItem
from vlm2vec.training.engine import close_ranks, initialize_ranks, set_collective_timeout

TEMPERATURE = 0.05
BATCH = 10

# Which pairs have pictures on the query side, and which rank encodes an item (of 2 * BATCH: queries, then targets).
SCENARIOS: dict[str, tuple[Callable[[int], bool], Callable[[int, int], int]]] = {
    "mixed": (lambda row: row % 2 == 0, lambda item, ranks: item % ranks),
    "images on one rank only": (lambda row: row % 2 == 0, lambda item, ranks: 0 if item < BATCH else ranks - 1),
    "one rank has a single item": (lambda row: row % 3 == 0, lambda item, ranks: 0 if item else ranks - 1),
    "text only": (lambda row: False, lambda item, ranks: item % ranks),
    "a rank has nothing": (lambda row: True, lambda item, ranks: 0),
}
PACKINGS: dict[str, Packing] = {
    "one item": FixedCounts(1, 1),
    "ragged": TokenBudget(70),
    "whole batch": TokenBudget(10**6),
}


class _Processor:
    """The two attributes of a processor that packing needs."""

    pad_token_id = 0

    def process_item(self, text: str, images: Sequence[object], max_len: int | None) -> ProcessedItem:
        return ProcessedItem(torch.tensor([1]))


def build_encoder(kind: str) -> VLM2Vec:
    encoder = VLM2Vec(tiny_model(), processor=None, max_len=None)  # type: ignore[arg-type]
    if kind != "full":
        encoder.add_lora(LoraSettings(r=4, alpha=4, dropout=0.0, use_dora=kind == "dora"))
        with torch.no_grad():  # B starts at zero, which would hide half of the gradient
            for name, parameter in encoder.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    return encoder.train()


def global_items(has_image: Callable[[int], bool]) -> tuple[list[ProcessedItem], list[int], list[int]]:
    """Distinct items, and each row's query and target; the last row shares the first row's target."""
    items = [tiny_item(row, has_image(row)) for row in range(BATCH)]
    items += [tiny_item(100 + row, row % 5 == 4) for row in range(BATCH)]
    query, positive = list(range(BATCH)), list(range(BATCH, 2 * BATCH))
    positive[-1] = positive[0]
    return items, query, positive


def plain_gradient(
    encoder: VLM2Vec, inputs: ItemEncoderInputs, has_image: Callable[[int], bool]
) -> dict[str, torch.Tensor]:
    """One process, one graph, the textbook loss."""
    items, query, positive = global_items(has_image)
    encoder.zero_grad()
    representations = encoder(**inputs.chunk(items).arguments(torch.device("cpu"), dummy_image=False))
    scores = representations[query] @ representations[positive].T / TEMPERATURE
    F.cross_entropy(scores, torch.arange(BATCH)).backward()
    return {
        name: torch.zeros_like(each) if each.grad is None else each.grad.clone()
        for name, each in encoder.named_parameters()
        if each.requires_grad
    }


def layout_of(
    rank: int, ranks: int, owner: Callable[[int, int], int], has_image: Callable[[int], bool]
) -> tuple[list[ProcessedItem], list[bool], StepLayout]:
    """This rank's items, which of them are queries, and where they belong."""
    items, query, positive = global_items(has_image)
    owners = [owner(item, ranks) for item in range(len(items))]
    order = sorted(range(len(items)), key=lambda item: owners[item])
    number = {item: place for place, item in enumerate(order)}
    own = [item for item in order if owners[item] == rank]
    layout = StepLayout(
        counts=tuple(owners.count(each) for each in range(ranks)),
        local_order=torch.empty(0, dtype=torch.int64),
        pairs=Pairs(torch.tensor([number[item] for item in query]), torch.tensor([number[item] for item in positive])),
        rows=range(rank * BATCH // ranks, (rank + 1) * BATCH // ranks),
        digest=7,
    )
    return [items[item] for item in own], [item < BATCH for item in own], layout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage", type=int, required=True)
    parser.add_argument("--kind", choices=("full", "lora", "dora"), required=True)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    initialize_ranks(60)
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    rank, ranks = dist.get_rank(), dist.get_world_size()
    encoder = build_encoder(options.kind)
    reference = copy.deepcopy(encoder)
    engine, *_ = deepspeed.initialize(
        model=encoder,
        model_parameters=[each for each in encoder.parameters() if each.requires_grad],
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "optimizer": {"type": "AdamW", "params": {"lr": 0.0, "torch_adam": True}},
            "zero_optimization": {"stage": options.stage},
            "steps_per_print": 10**9,
        },
    )
    set_collective_timeout(60)
    results = {}
    for scenario in options.scenarios:
        has_image, owner = SCENARIOS[scenario]
        inputs = ItemEncoderInputs(_Processor(), None, TokenBudget(1))  # type: ignore[arg-type]
        expected = plain_gradient(reference, inputs, has_image)
        for packing_name, packing in PACKINGS.items():
            inputs.packing = packing
            own, is_query, layout = layout_of(rank, ranks, owner, has_image)
            chunks, position = inputs.chunks(own, is_query)
            layout = StepLayout(**{**layout.__dict__, "local_order": position})
            step = CachedStep(engine, ContrastiveLoss(TEMPERATURE, block_rows=3), inputs.padding_chunk())
            step.cache_step(chunks, layout)
            error = norm = torch.zeros(())
            for name, parameter in engine.module.named_parameters():
                if parameter.requires_grad:
                    gradient = safe_get_full_grad(parameter)
                    error = error + (gradient - expected[name]).square().sum()
                    norm = norm + expected[name].square().sum()
            engine.step()
            results[f"{scenario} | {packing_name}"] = float((error / norm).sqrt())
    if rank == 0:
        options.output.write_text(json.dumps(results))
    close_ranks()


if __name__ == "__main__":
    main()
