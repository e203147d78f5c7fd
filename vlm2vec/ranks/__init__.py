"""Ranks of a job, for training and evaluation: joining, leaving, time limits, and agreements among all ranks.

Everything also works in one process without a process group, which is rank 0 of 1.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlm2vec.ranks.launcher import (
    LAUNCHER_VARIABLES,
    device_index,
    free_port,
    is_first_rank,
    is_launched,
    port_in_use,
    ranks_of_node,
    run_ranks_program,
    wait_for_port,
)

if TYPE_CHECKING:
    from vlm2vec.ranks.agreement import on_every_rank, on_first_rank, refuse_alike, refuse_together
    from vlm2vec.ranks.group import (
        close_ranks,
        host_ranks,
        initialize_ranks,
        own_rank,
        prepare_environment,
        set_collective_timeout,
        world_size,
    )
    from vlm2vec.ranks.messages import gather_from_all, send_from_first

__all__ = [
    "LAUNCHER_VARIABLES",
    "close_ranks",
    "device_index",
    "free_port",
    "gather_from_all",
    "host_ranks",
    "initialize_ranks",
    "is_first_rank",
    "is_launched",
    "on_every_rank",
    "on_first_rank",
    "own_rank",
    "port_in_use",
    "prepare_environment",
    "ranks_of_node",
    "refuse_alike",
    "refuse_together",
    "run_ranks_program",
    "send_from_first",
    "set_collective_timeout",
    "wait_for_port",
    "world_size",
]
# Imported lazily, because these modules need torch, and light programs only read the launcher's environment.
_NEED_TORCH = ("agreement", "group", "messages")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in map(import_module, (f"{__name__}.{each}" for each in _NEED_TORCH)):
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
