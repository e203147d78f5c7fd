"""Progress without a terminal: whole lines, at intervals, on the first rank."""

from __future__ import annotations

import sys
import threading

import pytest
from tqdm import tqdm

from vlm2vec.messages import progress
from vlm2vec.messages.progress import announce_imports, progress_bar, still_running


class Clock:
    """Stands in for the `time` module: seconds pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_a_log_file_gets_whole_lines_at_intervals(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(4_000, "encode", "item") as bar:
        for _ in range(4):
            clock.seconds += 20
            bar.update(1_000)
    assert capsys.readouterr().err.splitlines() == [
        "encode: 2,000 items of 4,000 items (50%), about 00:40 left",
        "encode: 4,000 items of 4,000 items (100%), about 00:00 left",
    ]
    with progress_bar(3 * 10**9, "write", "B") as bar:
        clock.seconds += 31
        bar.update(10**9)
    assert capsys.readouterr().err == "write: 1.00GB of 3.00GB (33%), about 01:02 left\n"
    with progress_bar(3, "read", "dataset") as bar:
        clock.seconds += 29
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_only_the_first_rank_writes(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress_bar(3, "read", "dataset") as bar, still_running("waiting"):
        bar.update()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    announce_imports()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(3, "read", "dataset") as bar:
        assert isinstance(bar, tqdm)
        bar.update(3)


def test_work_that_cannot_be_counted_is_reported_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line comes from a thread of its own, which ends with the work."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    lines: list[str] = []
    told = threading.Event()

    def write(text: str, file: object) -> None:
        lines.append(text)
        told.set()

    monkeypatch.setattr(tqdm, "write", write)
    with still_running("loading a model"):
        assert told.wait(60)
    assert lines[0].startswith("still loading a model (0 s")
    assert "still running" not in {thread.name for thread in threading.enumerate()}
