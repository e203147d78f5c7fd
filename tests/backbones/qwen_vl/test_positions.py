"""Positions of tokens and patches compared with the reference and transformers' own functions."""

from __future__ import annotations

import random
from itertools import groupby
from typing import Any, Literal

import pytest
import torch
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from tests.rig import qwen_golden
from vlm2vec.backbones.qwen_vl.items.positions import (
    Grid,
    interpolation,
    num_tokens,
    patch_positions,
    token_positions,
    windows,
)

IMAGE_TOKEN = 1512
CASES = [
    (family, case)
    for family in qwen_golden.FAMILIES
    for case in qwen_golden.read(family, "model_cases/cases.json")["cases"]
]


def random_grids(seed: int) -> list[list[Grid]]:
    """Some images at a time, with grids that no window divides among them."""
    generator = random.Random(seed)

    def side() -> int:
        return 2 * generator.choice((1, 2, 4, 8, 16, generator.randint(1, 40)))

    return [[(side(), side()) for _ in range(generator.randint(1, 4))] for _ in range(60)]


def as_thw(grids: list[Grid]) -> torch.Tensor:
    return torch.tensor([[1, *grid] for grid in grids])


def image_places(ids: list[int], grids: list[Grid]) -> list[int]:
    """Adjacent images are distinguished by their sizes."""
    tokens = [place for place, token in enumerate(ids) if token == IMAGE_TOKEN]
    places, first = [], 0
    for grid in grids:
        places.append(tokens[first])
        first += num_tokens(grid)
    assert first == len(tokens)
    return places


@pytest.mark.parametrize(("family", "case"), CASES, ids=[f"{family}-{case['case']}" for family, case in CASES])
def test_positions_of_the_reference(family: str, case: dict[str, Any]) -> None:
    expected = qwen_golden.tensors(family, case["file"])
    grids = [(rows, columns) for _, rows, columns in expected.get("image_grid_thw", torch.empty(0, 3)).int().tolist()]
    kind: Literal["sequence", "grid"] = "grid" if case["positions"] == "M-RoPE" else "sequence"
    for row, mask, positions in zip(
        expected["input_ids"], expected["attention_mask"].bool(), expected["position_ids"].unbind(1), strict=True
    ):
        ids = row[mask].tolist()
        of_row, tokens = [], 0
        while tokens < ids.count(IMAGE_TOKEN):
            of_row.append(grids.pop(0))
            tokens += num_tokens(of_row[-1])
        made = token_positions(len(ids), image_places(ids, of_row), of_row, kind)
        assert torch.equal(made, positions[:, mask])
    assert not grids


def test_positions_of_transformers() -> None:
    """M-RoPE with text before, between and behind images."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    model = object.__new__(Qwen3VLModel)
    torch.nn.Module.__init__(model)
    model.config = type("Config", (), {"vision_config": type("Vision", (), {"spatial_merge_size": 2})})
    generator = random.Random(1)
    for grids in random_grids(1):
        ids = [0] * generator.randint(1, 9)
        for grid in grids:
            ids += [IMAGE_TOKEN] * num_tokens(grid) + [0] * generator.randint(1, 9)
        kinds = torch.tensor([[int(token == IMAGE_TOKEN) for token in ids]])
        expected, _ = model.get_rope_index(torch.tensor([ids]), kinds, image_grid_thw=as_thw(grids))
        assert torch.equal(token_positions(len(ids), image_places(ids, grids), grids, "grid"), expected[:, 0])


def test_adjacent_images() -> None:
    """Two images without text between them, which transformers cannot tell apart."""
    positions = token_positions(1 + 2 + 2 + 1, [1, 3], [(2, 4), (4, 2)], "grid")
    assert positions.tolist() == [[0, 1, 1, 3, 3, 5], [0, 1, 1, 3, 4, 5], [0, 1, 2, 3, 3, 5]]


def test_patches_of_transformers() -> None:
    for grids in random_grids(2):
        assert torch.equal(patch_positions(grids), get_vision_position_ids(as_thw(grids), 2))


def test_windows_of_transformers() -> None:
    """The same windows; only their order differs: ours are sorted by size."""
    sizes = set()
    for grids in random_grids(3):
        index, lengths = windows(grids, 4)
        assert list(lengths) == sorted(lengths)
        expected, ends = get_vision_window_index(as_thw(grids), 2, 112, 14)
        theirs = expected.split([length // 4 for length in ends.diff().tolist()])
        ours = index.split([length // 4 for length in lengths])
        stable = [window for _, group in groupby(sorted(theirs, key=len), key=len) for window in group]
        assert all(torch.equal(*pair) for pair in zip(ours, stable, strict=True))
        sizes |= set(lengths)
    assert {4, 16, 64} < sizes


@pytest.mark.parametrize("side", [12, 48])
def test_interpolation_of_transformers(side: int) -> None:
    for grids in random_grids(4):
        indices, weights = get_vision_interpolation_indices_and_weights(
            as_thw(grids), side, align_corners=True, spatial_merge_size=2
        )
        ours = interpolation(grids, side)
        assert torch.equal(ours[0], indices.T)
        assert torch.equal(ours[1], weights.T)
