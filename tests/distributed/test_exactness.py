"""One global batch, one answer: the cached step on ranks against one plain graph, real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.exactness_worker import SCENARIOS
from tests.distributed.launcher import run_ranks

EVERYTHING = list(SCENARIOS)
TOLERANCE = 1e-6  # relative, the norm of the whole gradient


@pytest.mark.parametrize(
    ("ranks", "stage", "kind", "scenarios"),
    [
        (1, 2, "full", ["mixed"]),
        (2, 1, "dora", ["mixed", "images on one rank only"]),
        (2, 2, "full", EVERYTHING),
        (2, 3, "full", EVERYTHING),
        (3, 3, "lora", ["images on one rank only"]),
    ],
)
def test_the_gradient_is_that_of_one_graph(
    ranks: int, stage: int, kind: str, scenarios: list[str], tmp_path: Path
) -> None:
    """For mixed batches, pictures on one rank only, one item on a rank and none at all; in chunks of any size."""
    output = tmp_path / "errors.json"
    run_ranks(
        ranks,
        [
            *("-m", "tests.distributed.exactness_worker", "--stage", str(stage), "--kind", kind),
            *("--scenarios", *scenarios, "--output", str(output)),
        ],
        tmp_path,
        timeout=240,
    )
    errors = json.loads(output.read_text())
    assert len(errors) == 3 * len(scenarios)
    assert {cell: error for cell, error in errors.items() if not error <= TOLERANCE} == {}
