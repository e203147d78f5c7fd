"""Damaged files of an evaluation: a sample of what `python -m tests.eval.damage` tries."""

from __future__ import annotations

from pathlib import Path

from tests.eval import damage


def test_damaged_files_are_refused_in_one_line_or_read_to_the_undamaged_values(tmp_path: Path):
    outcomes, failures = damage.run(tmp_path, mutations=120, seed=1)
    assert failures == []
    for operator in damage.OPERATORS:
        assert outcomes[operator, "refused"] > 0, operator
