"""Damaged files of an evaluation: a sample of `python -m trials.fuzz_results`."""

from __future__ import annotations

from pathlib import Path

from trials import fuzz_results as damage


def test_damaged_files_are_refused_in_one_line_or_read_to_the_undamaged_values(tmp_path: Path) -> None:
    outcomes, failures = damage.run(tmp_path, mutations=120, seed=1)
    assert failures == []
    for operator in damage.OPERATORS:
        assert outcomes[operator, "refused"] > 0, operator
