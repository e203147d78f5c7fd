"""bf16 parameters: chunking adds next to nothing to the error that bf16 itself makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.launcher import run_ranks

# A chunk's gradient is rounded to bf16 once before it is added up in float32. Single items, whose gradients cancel in
# the sum, therefore add a little (measured 1.11); summing chunks in bf16 would multiply the error.
ADDED = {"one item": 1.15, "ragged": 1.03}


def test_chunks_add_up_in_float32(tmp_path: Path) -> None:
    run_ranks(2, ["-m", "tests.distributed.bf16_gradient_worker", "--output", str(tmp_path / "errors.json")], tmp_path)
    errors = json.loads((tmp_path / "errors.json").read_text())
    for stage in (1, 2, 3):
        plain = errors[f"ZeRO-{stage}, whole batch"]
        assert 0 < plain < 0.02
        for chunks, factor in ADDED.items():
            assert errors[f"ZeRO-{stage}, {chunks}"] < factor * plain
        if stage < 3:
            assert errors[f"ZeRO-{stage}, kept graphs"] == pytest.approx(plain, rel=0.03)
    # DeepSpeed would lose most of the gradient there without a word.
    assert "keep_graphs" in errors["ZeRO-3, kept graphs"]
