"""Flags for the ranks: how long they wait for each other."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from vlm2vec.training.flags.option import Refusal, option


@dataclass(kw_only=True)
class ClusterArguments:
    """Cluster: how long ranks wait for each other before a hang becomes an error."""

    step_timeout: int = option(
        90,
        "After the first step, abort if a rank makes no progress, or sends no heartbeat, for this many seconds.",
        "speed",
    )
    collective_timeout: int = option(
        1800,
        "The same limit, in seconds, before the first step and while data, checkpoints and scores are handled; also "
        "the limit of every collective.",
        "speed",
    )
    # Set by the launcher, not by people.
    local_rank: int = option(-1, argparse.SUPPRESS, "place", per_node=True)


def cluster_refusals(arguments: ClusterArguments) -> list[Refusal]:
    """Values that cannot work."""
    short, long = arguments.step_timeout, arguments.collective_timeout
    return [
        (short < 5, f"--step_timeout {short}: must be at least 5, as ranks send a heartbeat about once per second"),
        (long < short, f"--collective_timeout {long}: must be at least --step_timeout {short}"),
    ]
