"""What a run is told of its ranks: for how long they wait for one another."""

from __future__ import annotations

from dataclasses import dataclass

from vlm2vec.training.flags.option import option


@dataclass(kw_only=True)
class ClusterArguments:
    """Time limits of a run."""

    step_timeout: int = option(
        90, "Seconds without progress, or without a sign of a rank, after which a run ends that has done a step."
    )
    collective_timeout: int = option(
        1800, "The same before the first step, and for data, checkpoints and scores; the limit of any collective."
    )
    local_rank: int = option(-1, "Set by the launcher.")


def cluster_refusals(arguments: ClusterArguments) -> list[tuple[bool, str]]:
    """What cannot work: whether it is so, and what to say."""
    short, long = arguments.step_timeout, arguments.collective_timeout
    return [
        (short < 5, f"--step_timeout {short}: must be at least 5, as ranks give a sign every second or less often"),
        (long < short, f"--collective_timeout {long}: must be at least --step_timeout {short}"),
    ]
