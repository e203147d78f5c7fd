"""One rank of three that runs a cached step under many ZeRO settings and prints the relative gradient errors."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from trials.exactness import relative_error
from trials.exactness_grid import BATCHES, CHUNKS, TEMPERATURE
from trials.exactness_reference import build_encoder, padding_chunk, plain_gradient, rank_batch
from trials.rig.engines import build_engine
from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec.contrastive import CachedStep, ContrastiveLoss
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.training.flags.engine_file import read_engine_file

SMALL = {"reduce_bucket_size": 1000, "allgather_bucket_size": 1000}
# Each key with another value than DeepSpeed's own, and under ZeRO-2 all pairs of those that choose how it sends.
SETTINGS: list[dict[str, Any]] = [
    {"stage": 1, **SMALL, "reduce_scatter": False, "allgather_partitions": False, "overlap_comm": True},
    {"stage": 1, **SMALL, "contiguous_gradients": False, "use_multi_rank_bucket_allreduce": False},
    {"stage": 1, **SMALL, "offload_optimizer": {"device": "cpu"}},
    {"stage": 2, **SMALL, "contiguous_gradients": False, "reduce_scatter": False, "allgather_partitions": False},
    {"stage": 2, **SMALL, "contiguous_gradients": False, "use_multi_rank_bucket_allreduce": False},
    {"stage": 2, **SMALL, "overlap_comm": True, "use_multi_rank_bucket_allreduce": False, "reduce_scatter": False},
    {"stage": 2, **SMALL, "overlap_comm": True, "allgather_partitions": False},
    {
        **{"stage": 2, **SMALL, "contiguous_gradients": False, "overlap_comm": True, "allgather_partitions": False},
        "use_multi_rank_bucket_allreduce": False,
    },
    {"stage": 2, **SMALL, "offload_optimizer": {"device": "cpu"}},
    {"stage": 3, "reduce_bucket_size": 1000, "overlap_comm": True, "reduce_scatter": False, "sub_group_size": 5000},
    {
        **{"stage": 3, "contiguous_gradients": False, "log_trace_cache_warnings": True},
        **{"stage3_prefetch_bucket_size": 1000, "stage3_param_persistence_threshold": 100},
        **{"stage3_max_live_parameters": 1000, "stage3_max_reuse_distance": 1000},
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    {
        **{"stage": 3, "stage3_use_all_reduce_for_fetch_params": True, "stage3_model_persistence_threshold": 1000},
        "stage3_param_persistence_threshold": 0,
    },
    {"stage": 3, "stage3_allgather_sequential": True, "stage3_param_persistence_threshold": 0},
    {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
]


def error_with(settings: dict[str, Any], file: Path) -> float:
    """Of the gradient of one step in ragged chunks, kept graphs included; then the engine updates."""
    file.write_text(json.dumps({"zero_optimization": settings}))
    encoder = build_encoder("full", dropout=0.0)
    reference = copy.deepcopy(encoder)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    entries = {**read_engine_file(file), "zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True}
    engine = build_engine(encoder, settings["stage"], **entries)
    batch = rank_batch(BATCHES["mixed"], CHUNKS["ragged"], rank, ranks)
    expected = plain_gradient(reference, batch, seed=0)
    CachedStep(engine, ContrastiveLoss(TEMPERATURE), padding_chunk()).cache_step(batch.chunks, batch.layout)
    error = relative_error(engine, expected)
    engine.step()
    engine.destroy()
    return error


def main(folder: Path) -> None:
    initialize_ranks(COLLECTIVE_SECONDS)
    errors = []
    for settings in SETTINGS:
        print(settings, flush=True)
        errors.append(error_with(settings, folder / f"engine{dist.get_rank()}.json"))
        print(errors[-1], flush=True)
    if dist.get_rank() == 0:
        (folder / "errors.json").write_text(json.dumps(errors))
    close_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
