"""The chunk with which the memory of a graph is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm2vec.backbones.phi3_v import Phi3VProcessor
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.packing import FixedCounts, TokenBudget
from vlm2vec.training.preflight.graph_memory import DeviceMemory, largest_chunk


def test_free_memory_counts_the_cache_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 GB, 50 are reserved, 30 of them in tensors; the driver has 25 left, as 5 are another process's."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (25, 80))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 30)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 50)
    assert DeviceMemory.now() == DeviceMemory(allocated=30, free=25 + 20, total=80)


@pytest.mark.parametrize("num_crops", [1, 4, 5])
def test_images_with_all_crops_fill_the_budget(mini_model_dir: Path, num_crops: int) -> None:
    inputs = ItemEncoderInputs(Phi3VProcessor.from_pretrained(mini_model_dir, num_crops=num_crops), max_len=None)
    chunk = largest_chunk(inputs, TokenBudget(400))
    rows, width = chunk.inputs["input_ids"].shape
    assert rows == chunk.num_items
    assert rows * width <= 400 < (rows + 1) * width
    # The global view comes on top of the local crops.
    assert len(chunk.inputs["pixel_values"]) == rows * (num_crops + 1)


def test_fixed_counts_and_budgets_below_one_item(mini_model_dir: Path) -> None:
    inputs = ItemEncoderInputs(Phi3VProcessor.from_pretrained(mini_model_dir, num_crops=1), max_len=None)
    assert largest_chunk(inputs, FixedCounts(3, 5)).num_items == 5
    assert largest_chunk(inputs, TokenBudget(1)).num_items == 1
