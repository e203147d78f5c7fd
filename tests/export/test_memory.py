"""Peak memory of an export is a few output files, however large the checkpoint is."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from benchmarks.export import Request, measure, write_full, write_lora
from vlm2vec.training.checkpoints.writer import ENGINE_TAG

SHARD = 20_000_000


def test_peak_memory_is_three_files_at_most(forked_python: Path, tmp_path: Path) -> None:
    write_full(tmp_path / "zero2", stage=2, num_ranks=2, num_layers=20)
    write_full(tmp_path / "zero3", stage=3, num_ranks=3, num_layers=20)
    write_lora(tmp_path / "lora", stage=2, num_ranks=2, num_layers=20)
    names = ["zero2", "zero3", "lora"]
    requests = [Request(str(tmp_path / n), str(tmp_path / f"{n}-out"), "20MB", n == "lora") for n in names]
    for name, found in zip(names, measure(*requests, python=str(forked_python)), strict=True):
        assert found.written > 7 * SHARD, name
        assert SHARD * 0.7 < found.largest_file <= SHARD * 1.01, name
        assert found.peak <= 3 * found.largest_file, f"{name}: {found}"
    assert found.checkpoint < SHARD  # an adapter's; the others hold masters and moments
    _first_numbers_are_the_first_ranks(tmp_path)


def _first_numbers_are_the_first_ranks(root: Path) -> None:
    file = root / "zero2" / ENGINE_TAG / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    masters = torch.load(file, weights_only=True)["optimizer_state_dict"]["single_partition_of_fp32_groups"][0]
    with safe_open(root / "zero2-out" / "model-00001-of-00008.safetensors", framework="pt") as content:
        first = content.get_tensor("model.embed_tokens.weight").flatten()
    assert torch.equal(first, masters[: len(first)])
