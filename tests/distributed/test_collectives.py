"""The collectives of one cached step: part of the step, kind and bytes."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.distributed.workers.collectives import CHUNKS, LOSS, PASS_1, PASS_2, STAGES, UPDATE, Recorded
from trials.exactness_reference import build_encoder
from trials.rig.collectives import AGREE
from trials.rig.forked import run_ranks

RANKS = 2
ALL_GATHER, REDUCE_SCATTER, ALL_REDUCE, BROADCAST = (
    "_allgather_base_",
    "_reduce_scatter_base_",
    "allreduce_",
    "broadcast_",
)
FLOAT32, INT64 = 4, 8
NUMBERS_TO_AGREE_ON = 8  # chunks and chunks with images of three phases, a wish to stop, and the digest

Rank = dict[tuple[int, str], Recorded]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Rank]:
    """Every rank's steps by ZeRO stage and chunks."""
    folder = tmp_path_factory.mktemp("collectives")
    run_ranks(RANKS, ["-m", "tests.distributed.workers.collectives", str(folder)], folder)
    recorded = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    return [{(step["stage"], step["chunks"]): Recorded(**step) for step in steps} for steps in recorded]


@pytest.fixture(scope="module")
def parameter_bytes() -> dict[bool, int]:
    """Bytes of the parameters that are trained, by whether only images need them; the others never run."""
    sizes: Counter[bool] = Counter()
    for name, parameter in build_encoder("full", dropout=0.0).named_parameters():
        if parameter.requires_grad:
            sizes["vision_embed_tokens" in name] += FLOAT32 * parameter.numel()
    return sizes


def of_part(step: Recorded, part: str) -> list[tuple[str, int]]:
    return [(kind, size) for each, kind, size in step.collectives if each == part]


def slots(ranks: list[Rank], stage: int, chunks: str) -> list[tuple[int, int]]:
    """Engine calls of each phase, and how many with images: those of the rank with most."""
    phases = zip(*(rank[stage, chunks].phases for rank in ranks), strict=True)
    return [(max(count for count, _ in phase), max(images for _, images in phase)) for phase in phases]


def test_the_steps_differ_as_they_should(ranks: list[Rank]) -> None:
    """Otherwise what follows compares like with like."""
    assert [slots(ranks, 1, chunks)[0][0] for chunks in CHUNKS] == [3, 10, 8]
    assert len(set(ranks[0][1, "3"].counts)) == RANKS
    for chunks in CHUNKS:
        assert ranks[0][3, chunks].phases != ranks[1][3, chunks].phases


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("stage", STAGES)
def test_one_agreement_and_one_exchange_of_representations(stage: int, chunks: str, ranks: list[Rank]) -> None:
    """64 bytes a rank before anything runs; then all rows once forward and their gradient once back."""
    dimension = build_encoder("full", dropout=0.0).backbone.config.hidden_size
    for rank in ranks:
        step = rank[stage, chunks]
        rows = RANKS * max(step.counts) * dimension * FLOAT32
        assert of_part(step, AGREE) == [(ALL_GATHER, RANKS * NUMBERS_TO_AGREE_ON * INT64)]
        assert of_part(step, LOSS) == [(ALL_GATHER, rows), (REDUCE_SCATTER, rows)]


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("stage", [1, 2])
def test_one_gradient_reduction_whatever_the_number_of_chunks(
    stage: int, chunks: str, ranks: list[Rank], parameter_bytes: dict[bool, int]
) -> None:
    """The update adds the new parameters' all-gather and a number or two for the gradient's norm."""
    everything = sum(parameter_bytes.values())
    for rank in ranks:
        step = rank[stage, chunks]
        assert of_part(step, PASS_1) == []
        assert of_part(step, PASS_2) == [(ALL_REDUCE, everything)]
        numbers = [(kind, size) for kind, size in of_part(step, UPDATE) if size <= INT64]
        assert [kind for kind, _ in numbers] == [ALL_REDUCE]
        assert [each for each in of_part(step, UPDATE) if each not in numbers] == [(ALL_GATHER, everything)]


@pytest.mark.parametrize("chunks", CHUNKS)
def test_zero_3_reduces_once_and_gathers_parameters_by_engine_calls(
    chunks: str, ranks: list[Rank], parameter_bytes: dict[bool, int]
) -> None:
    """Parameters are gathered once a call without graph, twice a call with one; the vision tower's where it runs."""
    encode, keep, repeat = (
        calls * parameter_bytes[False] + with_images * parameter_bytes[True]
        for calls, with_images in slots(ranks, 3, chunks)
    )
    for rank in ranks:
        step = rank[3, chunks]
        gathered, others = {}, {}
        for part in (PASS_1, PASS_2):
            gathered[part] = sum(size for kind, size in of_part(step, part) if kind == ALL_GATHER)
            others[part] = [each for each in of_part(step, part) if each[0] not in (ALL_GATHER, BROADCAST)]
            # DeepSpeed compares the order of modules over the ranks where it changes: a few numbers.
            order = sum(size for kind, size in of_part(step, part) if kind == BROADCAST)
            assert order < gathered[part] / 100
        assert gathered == {PASS_1: encode + keep, PASS_2: keep + 2 * repeat}
        assert others == {PASS_1: [], PASS_2: [(REDUCE_SCATTER, sum(parameter_bytes.values()))]}
        assert [kind for kind, size in of_part(step, UPDATE) if size <= INT64] == [ALL_REDUCE]
        assert len(of_part(step, UPDATE)) == 1
