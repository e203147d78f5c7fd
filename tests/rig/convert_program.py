"""Runs the converter's program in the test's own process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from data_prep import convert
from vlm2vec.errors import run_program


def run_main(monkeypatch: pytest.MonkeyPatch, dataset: Path, output: Path, *options: str) -> int:
    """Exit code of a conversion of subset A, without workers."""
    arguments = ["--dataset_name", dataset, "--image_dir", dataset, "--output_dir", output, "--subset_name", "A"]
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments), "--num_workers", "0", *options])
    return run_program(convert.main)
