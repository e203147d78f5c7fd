"""The program that writes docs/benchmarks.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks.suites import Suite


def test_a_run_replaces_its_section_and_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "benchmarks.md"
    suites = {name: Suite(name.upper(), "calendar 2026 1", "Text.") for name in ("first", "second")}
    monkeypatch.setattr(program, "SUITES", suites)
    monkeypatch.setattr(program, "DOCUMENT", document)
    run = program.run

    def run_beside_another(suite: Suite) -> str:
        document.write_text(program.compose({"second": "written meanwhile"}), encoding="utf-8")
        return run(suite)

    monkeypatch.setattr(program, "run", run_beside_another)
    program.main(["first"])
    found = program.sections(document.read_text(encoding="utf-8"))
    assert "January 2026" in found["first"]
    assert found["first"].startswith("`python -m calendar 2026 1` (")
    assert found["second"] == "written meanwhile\n"


def test_log_lines_are_removed() -> None:
    log = "[2026-11-23 14:12:15,356] [WARNING] [real_accelerator.py:213:get_accelerator] Setting accelerator to CPU."
    assert program.without_log_lines(f"{log}\n| a | b |\n") == "| a | b |"


def test_a_gpus_numbers_are_kept_on_a_machine_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "benchmarks.md"
    monkeypatch.setattr(program, "SUITES", {"gpu": Suite("GPU", "calendar 2026 1", "Text.", needs_gpu=True)})
    monkeypatch.setattr(program, "DOCUMENT", document)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    document.write_text(program.compose({"gpu": "measured on a GPU"}), encoding="utf-8")
    program.main(["gpu"])
    assert program.sections(document.read_text(encoding="utf-8")) == {"gpu": "measured on a GPU\n"}
