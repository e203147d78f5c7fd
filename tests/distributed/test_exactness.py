"""One global batch, one answer: the cached step on ranks against one plain graph, real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.launcher import run_ranks

TOLERANCE = 1e-6  # relative, the norm of the whole gradient


@pytest.mark.parametrize(
    ("ranks", "stage", "kind"),
    [(1, 2, "full"), (2, 1, "dora"), (2, 2, "full"), (2, 3, "full"), (3, 3, "lora")],
)
def test_the_gradient_is_that_of_one_graph(ranks: int, stage: int, kind: str, tmp_path: Path) -> None:
    """For mixed batches, pictures on one rank only, one item on a rank and none at all; in chunks of any size."""
    output = tmp_path / "errors.json"
    run_ranks(
        ranks,
        ["-m", "tests.distributed.exactness_worker", "--stage", str(stage), "--kind", kind, "--output", str(output)],
        tmp_path,
        timeout=240,
    )
    errors = json.loads(output.read_text())
    assert len(errors) == 15
    assert {cell: error for cell, error in errors.items() if not error <= TOLERANCE} == {}
