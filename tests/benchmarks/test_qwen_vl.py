"""The benchmark against transformers: both encode the same items, and a difference ends the program."""

from __future__ import annotations

import pytest
import torch

from benchmarks import qwen_vl


@pytest.mark.parametrize("family", qwen_vl.MODELS)
def test_both_ways_encode_the_same_items(family: str) -> None:
    items = qwen_vl.Items(2)
    assert len(items.photographs) == 1
    seconds = qwen_vl.compared(family, items, rounds=1)
    assert set(seconds) == {qwen_vl.IMAGES, qwen_vl.FORWARD, qwen_vl.COLLATED, qwen_vl.WHOLE}
    for ways in seconds.values():
        assert [len(each) for each in ways.values()] == [1, 1]


def test_other_vectors_end_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = qwen_vl.Ours.whole
    monkeypatch.setattr(qwen_vl.Ours, "whole", lambda self: whole(self) + 2e-5)
    with pytest.raises(SystemExit, match="qwen2_vl: the vectors of the two differ by"):
        qwen_vl.compared("qwen2_vl", qwen_vl.Items(2), rounds=1)


def test_other_pixels_end_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen_vl.Ours, "images", lambda self: [torch.zeros(4, 1176)])
    with pytest.raises(SystemExit, match="qwen2_vl: the pixels of the two differ"):
        qwen_vl.compared("qwen2_vl", qwen_vl.Items(2), rounds=1)
