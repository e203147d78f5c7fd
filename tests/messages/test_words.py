from __future__ import annotations

from pathlib import Path

import pytest

from vlm2vec.errors import EXIT_BAD_INPUT, run_program
from vlm2vec.messages.words import counted


def test_one_thing_and_more() -> None:
    numbers = [counted(number, "subset") for number in (0, 1, 2, 1500)]
    assert numbers == [
        "0 subsets",
        "1 subset",
        "2 subsets",
        "1,500 subsets",
    ]
    assert counted(2, "query", "queries") == "2 queries"


def test_an_output_below_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run_program(lambda: (tmp_path / "file/out").mkdir(parents=True)) == EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {tmp_path}/file/out: cannot be written or read (Not a directory)"
