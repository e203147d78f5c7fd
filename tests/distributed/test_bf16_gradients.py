"""Gradients of bf16 parameters: chunking adds almost nothing to bf16's own error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trials.rig.forked import run_ranks

pytestmark = pytest.mark.numeric

# A chunk's gradient is rounded to bf16 once before it is added up in float32. Single items, whose gradients cancel in
# the sum, therefore add a little (measured 1.11); summing chunks in bf16 would multiply the error. Which kernel a shape
# gets, and how it rounds, is the processor's: ragged chunks add 0.01 with AVX-512, 0.16 with AVX2 alone.
ADDED = {"one item": 1.25, "ragged": 1.25}
# Backwards of a step, over the rank with most chunks. ZeRO-2 and 3 add every one up in float32 after its reduction.
BACKWARDS = {"one item": 10, "ragged": 6, "whole batch": 2}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bf16")
    run_ranks(2, ["-m", "tests.distributed.workers.bf16_gradient", "--output", str(folder / "measured.json")], folder)
    values: dict[str, Any] = json.loads((folder / "measured.json").read_text())
    return values


def test_chunks_add_up_in_float32(measured: dict[str, Any]) -> None:
    errors = measured["errors"]
    for stage in (1, 2, 3):
        plain = errors[f"ZeRO-{stage}, whole batch"]
        assert 0 < plain < 0.02
        for chunks, factor in ADDED.items():
            assert errors[f"ZeRO-{stage}, {chunks}"] < factor * plain
        # ZeRO-3 by itself would lose most of the gradient here, without an error.
        # The kept graphs are those of the ragged chunks, so that the processor's rounding is the same.
        assert errors[f"ZeRO-{stage}, kept graphs"] == pytest.approx(errors[f"ZeRO-{stage}, ragged"], rel=0.03)


def test_offloaded_gradients_are_whole_and_of_this_step(measured: dict[str, Any]) -> None:
    """DeepSpeed by itself copies what the last backward reaches, and leaves the last step's gradient elsewhere.

    Errors would be near 1; those of bfloat16 itself are 0.01 to 0.02, depending on the processor.
    """
    offloaded = {name: error for name, error in measured["errors"].items() if "offload" in name}
    assert len(offloaded) == 6
    assert [name for name, error in offloaded.items() if not 0 < error < 0.03] == []


@pytest.mark.parametrize(("stage", "a_backward"), [(1, False), (2, True), (3, True)])
def test_the_last_backward_is_the_boundary(stage: int, a_backward: bool, measured: dict[str, Any]) -> None:
    """ZeRO-1 reduces at the boundary only; a boundary at every chunk would reduce as often as there are chunks."""
    for chunks, backwards in BACKWARDS.items():
        assert measured["reductions"][f"ZeRO-{stage}, {chunks}"] == (backwards if a_backward else 1)


def test_the_graphs_that_fit(measured: dict[str, Any]) -> None:
    """Rank 1 has 7 GB free: 2 stay free, 2 are for a backward, a little is for gradients; 2 graphs of 1 GB fit.

    The third costs nothing, as it is that of pass 2. Rank 0 could hold two more, but ranks run in step.
    """
    assert measured["graphs"] == {"ZeRO-1": 3, "ZeRO-2": 3, "ZeRO-3": 3}
