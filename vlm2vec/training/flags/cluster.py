"""Flags for the ranks: how long they wait for one another."""

from __future__ import annotations

from dataclasses import dataclass

from vlm2vec.training.flags.option import Refusal, option


@dataclass(kw_only=True)
class ClusterArguments:
    """Time limits of a run."""

    step_timeout: int = option(
        90,
        "After the first step, abort if a rank makes no progress, or sends no heartbeat, for this many seconds.",
        "speed",
    )
    collective_timeout: int = option(
        1800,
        "The same before the first step, and for data, checkpoints and scores; the limit of any collective.",
        "speed",
    )
    local_rank: int = option(-1, "Set by the launcher.", "place", per_node=True)


def cluster_refusals(arguments: ClusterArguments) -> list[Refusal]:
    """What cannot work."""
    short, long = arguments.step_timeout, arguments.collective_timeout
    return [
        (short < 5, f"--step_timeout {short}: must be at least 5, as ranks give a sign every second or less often"),
        (long < short, f"--collective_timeout {long}: must be at least --step_timeout {short}"),
    ]
