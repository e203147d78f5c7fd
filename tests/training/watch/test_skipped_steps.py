"""Skipped updates: reported one by one, and an error after several in a row."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vlm2vec.errors import InputError
from vlm2vec.training.watch.monitor import Monitor
from vlm2vec.training.watch.skipped_steps import MOST_SKIPPED_STEPS, SkippedSteps


class Messages(Monitor):
    """Records what it receives."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


def run(engine: SimpleNamespace, skips: list[bool], monitor: Messages) -> list[bool]:
    steps = SkippedSteps(engine)
    found = []
    for done, is_skipped in enumerate(skips, 1):
        engine.skipped_steps += is_skipped
        found.append(steps.after_update(done, monitor))
    return found


def test_a_skipped_update_is_reported() -> None:
    monitor, engine = Messages(), SimpleNamespace(skipped_steps=5)  # five before a resume
    skips = [False, True, True, False, True, False]
    assert run(engine, skips, monitor) == skips
    assert SkippedSteps(engine).total == 8
    assert [text.split(":")[1].strip() for text in monitor.texts] == ["step 2", "step 3", "step 5"]


def test_several_in_a_row_end_the_run() -> None:
    monitor = Messages()
    with pytest.raises(InputError, match=r"^step 4: the gradient is not finite .* lower --learning_rate"):
        run(SimpleNamespace(skipped_steps=0), [False, *[True] * MOST_SKIPPED_STEPS], monitor)
    assert len(monitor.texts) == MOST_SKIPPED_STEPS - 1
