"""One rank of the checks before the first step: agreements that fail, and rehearsals that change nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec import train
from vlm2vec.contrastive import CachedStep
from vlm2vec.errors import InputError
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.shards import DamagedSampleError, ShardSet
from vlm2vec.training.flags.run import parse_arguments
from vlm2vec.training.preflight import compare_ranks as same
from vlm2vec.training.run import Parts

FITTING_TOKENS = 100


class SmallDevice(CachedStep):
    """Runs out of memory as an accelerator does, on every rank."""

    def model_call(self, model: nn.Module, model_input: dict[str, Any]) -> Tensor:
        if model_input["input_ids"].numel() > FITTING_TOKENS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        raise AssertionError("the largest chunk is larger")


def attempt(flags: list[str], device: torch.device, parts: Parts = train.PARTS) -> str:
    """How a run ends that does not begin: what the first rank says, what the others do."""
    try:
        train.run(parse_arguments(flags), device, parts)
    except InputError as error:
        return f"says: {error}"
    except SystemExit as error:
        return f"exits: {error.code}"
    return "trains"


def main(jobs: dict[str, list[str]], folder: Path) -> None:
    """Does all jobs, `plain` ones with and without a rehearsal."""
    device = initialize_ranks(COLLECTIVE_SECONDS)
    rank = dist.get_rank()
    results: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        flags = jobs["refused"]
        results["arguments"] = attempt([*flags, "--learning_rate", "1e-3" if rank == 0 else "2e-3"], device)
        if rank == 1:
            patch.setattr(same, "_hash", lambda path: "other" if path.name == "loss.py" else "same")
        else:
            patch.setattr(same, "_hash", lambda path: "same")
        results["code"] = attempt(flags, device)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(ShardSet, "read", unreachable)
        results["data"] = attempt(flags, device)
    small = replace(train.PARTS, step=SmallDevice)
    results["memory"] = attempt([*flags, "--chunk_tokens", str(2 * FITTING_TOKENS)], device, small)
    for name, flags in jobs.items():
        if name != "refused":
            train.run(parse_arguments(flags), device)
            not_rehearsed = replace(train.PARTS, rehearse=lambda *arguments: None)
            train.run(parse_arguments([*flags, "--output_dir", f"{folder}/{name} without"]), device, not_rehearsed)
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    close_ranks()


def unreachable(shards: Any, subset: str, position: int) -> None:
    """The disk of this node does not answer."""
    raise DamagedSampleError(f"{subset}-000.tar: cannot read sample (I/O error)") from OSError("I/O error")
