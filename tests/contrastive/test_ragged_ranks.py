"""Three ranks with different numbers of items: gathering, comparing and reducing between them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rig.comparing import assert_close_relative
from trials.rig.forked import run_forked
from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec.batches.step_plan import end_to_end_positions
from vlm2vec.contrastive import CachedStep, Chunk, ContrastiveLoss, Pairs, StepChunks, StepLayout, gather_rows
from vlm2vec.contrastive.slots import agree_on_slots
from vlm2vec.ranks import close_ranks, initialize_ranks

RANKS = 3
# Row r is item r's query and item 4 + r its target; rank 0 encodes one item, rank 1 six, rank 2 one.
COUNTS, PAIRS, WIDTH = (1, 6, 1), 4, 4
FIRST_ROWS, LAST_ROWS = (0, 1, 3), (1, 3, 4)


class TwoPaths(nn.Module):
    """Items of kind 0 and 1 use different weights of the same size, so that a rank may use one of them only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.paths = nn.ModuleList(nn.Linear(WIDTH, 3, bias=False) for _ in range(2))

    def forward(self, features: Tensor, kind: int) -> Tensor:
        return F.normalize(self.paths[kind](features), dim=-1)


def kind_of(item: int) -> int:
    """Ranks 0 and 2 have items of kind 1 only, and so has rank 1 but for one."""
    return int(item != 2)


def all_features() -> Tensor:
    return torch.randn(2 * PAIRS, WIDTH, generator=torch.Generator().manual_seed(1))


def one_graph() -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients in float64 of the whole batch."""
    encoder = TwoPaths().double()
    rows = torch.cat([encoder(row[None], kind_of(item)) for item, row in enumerate(all_features().double())])
    loss = F.cross_entropy(rows[:PAIRS] @ rows[PAIRS:].T / 0.1, torch.arange(PAIRS))
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]


def check_gather(rank: int) -> None:
    starts = [sum(COUNTS[:each]) for each in range(RANKS)]
    everything = torch.randn(sum(COUNTS), WIDTH, generator=torch.Generator().manual_seed(2))
    for counts in (COUNTS, (0, 5, 3), (3, 0, 5)):
        starts = [sum(counts[:each]) for each in range(RANKS)]
        own = slice(starts[rank], starts[rank] + counts[rank])
        local = everything[own].clone().requires_grad_()
        gathered = gather_rows(local, counts)
        assert torch.equal(gathered, everything)
        weights = torch.arange(1.0, everything.numel() + 1).view_as(everything)
        (gathered * weights * (rank + 1)).sum().backward()
        assert local.grad is not None
        assert torch.equal(local.grad, weights[own] * (1 + 2 + 3))


def check_step(rank: int, chunk_size: int, stage: int) -> None:
    """`chunk_size` items a chunk; where a rank has fewer chunks than others, it runs padding."""
    import deepspeed

    encoder = TwoPaths()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.0, "torch_adam": True}},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=encoder, model_parameters=list(encoder.parameters()), config=config)
    first = sum(COUNTS[:rank])
    items = range(first, first + COUNTS[rank])
    features = all_features()
    groups = [[item for item in items if kind_of(item) == kind] for kind in (1, 0)]
    parts = [group[start : start + chunk_size] for group in groups for start in range(0, len(group), chunk_size)]
    chunks = [Chunk({"features": features[part], "kind": kind_of(part[0])}, len(part)) for part in parts]
    layout = StepLayout(
        counts=COUNTS,
        local_order=end_to_end_positions([[item - first for item in part] for part in parts]),
        pairs=Pairs(torch.arange(PAIRS), torch.arange(PAIRS, 2 * PAIRS)),
        rows=range(FIRST_ROWS[rank], LAST_ROWS[rank]),
        digest=1,
    )
    step = CachedStep(engine, ContrastiveLoss(0.1), Chunk({"features": torch.ones(1, WIDTH), "kind": 1}, 1))
    with pytest.raises(RuntimeError, match=r"ranks \[2\] have a different global batch than rank 0"):
        agree_on_slots(StepChunks.of(chunks), 5 + (rank == 2), engine.device)
    with pytest.raises(RuntimeError, match=r"ranks \[2\] have a different global batch than rank 0"):
        step(StepChunks.of(chunks), replace(layout, digest=5 + (rank == 2)))
    output = step(StepChunks.of(chunks), layout)
    loss = output.loss.clone()
    dist.all_reduce(loss)
    expected, gradients = one_graph()
    assert_close_relative(loss, expected, 1e-6, "loss")
    from deepspeed.utils import safe_get_full_grad

    for parameter, gradient in zip(engine.module.parameters(), gradients, strict=True):
        assert_close_relative(safe_get_full_grad(parameter), gradient, 2e-6, "gradient")
    engine.step()
    engine.destroy()


def rank_main(rank_sizes: dict[int, int]) -> None:
    initialize_ranks(COLLECTIVE_SECONDS)
    rank = dist.get_rank()
    check_gather(rank)
    for stage in (1, 2):
        check_step(rank, rank_sizes[rank], stage)
        check_step(rank, 1, stage)
    close_ranks()


def test_one_item_a_chunk_beside_everything_in_one_chunk(tmp_path: Path) -> None:
    """Rank 1 makes six chunks of its six items, the others one; gradients, loss and refusals are those of one graph."""
    run_forked(RANKS, rank_main, [{0: 100, 1: 1, 2: 100}], tmp_path)


@pytest.mark.parametrize("chunks", [[[2, 0], [1]], [[1], [3, 0], [2]], [[4, 2, 0], [1, 3]]])
def test_the_place_of_an_item_is_the_inverse_of_the_chunks_order(chunks: list[list[int]]) -> None:
    """Permutations that are no involutions: their inverse is another one."""
    order = [item for chunk in chunks for item in chunk]
    places = end_to_end_positions(chunks).tolist()
    assert [order[place] for place in places] == list(range(len(order)))
    assert places == [order.index(item) for item in range(len(order))]
    assert places != order
