"""Flags for profiling and MFU."""

from __future__ import annotations

from dataclasses import dataclass

from vlm2vec.training.flags.option import Refusal, option


@dataclass(kw_only=True)
class WatchArguments:
    """Profiles, and what utilization is counted by."""

    profile_steps: list[int] = option(
        [], "A B: write a torch.profiler trace of steps A to B, counted from 1, into profile/.", "speed"
    )
    flops_profile_step: int | None = option(
        None,
        "Write what DeepSpeed's flops profiler counts in this step's forward passes into profile/; not ZeRO-3.",
        "speed",
    )
    peak_tflops: float | None = option(
        None,
        "A device's TFLOP/s in the compute dtype, for MFU; a table has those of known GPUs in bfloat16.",
        "speed",
    )


def watch_refusals(arguments: WatchArguments, max_steps: int) -> list[Refusal]:
    """What cannot work, once the number of steps is known."""
    steps, once, peak = arguments.profile_steps, arguments.flops_profile_step, arguments.peak_tflops
    given = f"--profile_steps {' '.join(map(str, steps))}"
    return [
        (bool(steps) and len(steps) != 2, f"{given}: give two numbers, the first and the last step"),
        (
            len(steps) == 2 and not 1 <= steps[0] <= steps[-1] <= max_steps,
            f"{given}: steps go from 1 to --max_steps {max_steps}, the first of a trace before the last",
        ),
        (
            once is not None and not 1 <= once <= max_steps,
            f"--flops_profile_step {once}: steps go from 1 to --max_steps {max_steps}",
        ),
        (
            once is not None and len(steps) == 2 and steps[0] <= once <= steps[-1],
            f"--flops_profile_step {once}: its counting would be what {given} measures; choose another step",
        ),
        (peak is not None and peak <= 0, f"--peak_tflops {peak}: must be positive"),
    ]
