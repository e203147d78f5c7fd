"""Checkpoints as two ranks under ZeRO-2 write them, made from an encoder without starting ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vlm2vec import VLM2Vec
from vlm2vec.training.checkpoints.writer import ENCODER_FOLDER, ENGINE_TAG, RECORD, RunRecord

NUM_RANKS = 2


def write_zero2_checkpoint(encoder: VLM2Vec, model: Path, folder: Path) -> None:
    """Writes what an export reads of a checkpoint; what the encoder does not train is not in it.

    Args:
        encoder: In float32; its adapter is what was trained, or the whole of it.
        model: Where the run had its base.
        folder: The checkpoint.
    """
    is_adapter = any("lora_" in name for name, _ in encoder.named_parameters())
    engine = folder / ENGINE_TAG
    engine.mkdir(parents=True)
    encoder.save_configuration(folder / ENCODER_FOLDER, with_base=True)
    trained = {name: each.detach() for name, each in encoder.named_parameters() if each.requires_grad}
    masters = torch.cat([each.flatten() for each in trained.values()])
    pieces = torch.nn.functional.pad(masters, (0, len(masters) % NUM_RANKS)).chunk(NUM_RANKS)
    for rank, piece in enumerate(pieces):
        state = {"zero_stage": 2, "partition_count": NUM_RANKS, "single_partition_of_fp32_groups": [piece.clone()]}
        torch.save({"optimizer_state_dict": state}, engine / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    module = trained if is_adapter else dict(encoder.state_dict())
    shapes = {name: each.shape for name, each in trained.items()}
    torch.save({"module": module, "param_shapes": [shapes]}, engine / "mp_rank_00_model_states.pt")
    arguments: dict[str, Any] = {
        **{"model_name": str(model), "lora": is_adapter, "bf16": False},
        **{"max_len": encoder.max_len, "global_batch_size": 2},
    }
    RunRecord(1, NUM_RANKS, 2, arguments, {}, {}).write(folder / RECORD)
