"""Flags for logging, trackers, profiling and MFU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from vlm2vec.training.flags.option import Refusal, given, no_effect, option

# Each is the name of its Python package, too.
TENSORBOARD, WANDB, TRACKIO = TRACKERS = ("tensorboard", "wandb", "trackio")
NO_TRACKER = "none"


@dataclass(kw_only=True)
class WatchArguments:
    """Logging and profiling: how often metrics are written, and what is profiled."""

    profile_steps: list[int] = option(
        [],
        "First and last step of a torch.profiler trace, counted from 1; it is written to profile/ in --output_dir. If "
        "not given: no trace.",
        "speed",
        metavar="STEP",
    )
    flops_profile_step: int | None = option(
        None,
        "Write what DeepSpeed's flops profiler counts in the forward passes of this step to profile/ in --output_dir; "
        "not with ZeRO-3. If not given: no profile.",
        "speed",
        metavar="STEP",
    )
    peak_tflops: float | None = option(
        None,
        "Peak TFLOP/s of a device in the compute dtype, for MFU. If not given: a known GPU's value in bfloat16; on "
        "other devices MFU is not reported.",
        "speed",
    )


@dataclass(kw_only=True)
class LoggingArguments:
    """Logging and profiling: how often metrics are written, and what is profiled."""

    logging_steps: int = option(10, "Write a log line every N steps.", "speed")
    report_to: list[str] = option(
        [TENSORBOARD],
        "Trackers that get the metrics of log.jsonl; wandb and trackio need packages of these names. none: no tracker.",
        "speed",
        metavar="|".join((*TRACKERS, NO_TRACKER)),
    )
    project: str = option("vlm2vec", "Project of wandb and trackio that the run belongs to.", "speed", metavar="NAME")


def tracker_refusals(arguments: LoggingArguments) -> Iterator[Refusal]:
    """What cannot work: trackers that do not exist, are named twice or are not installed."""
    names = arguments.report_to
    shown = f"--report_to {' '.join(names)}"
    for name in names:
        choices = ", ".join((*TRACKERS, NO_TRACKER))
        yield name not in (*TRACKERS, NO_TRACKER), f"{shown}: {name} is none of {choices}"
    yield len(names) > len(set(names)), f"{shown}: give each tracker once"
    yield NO_TRACKER in names and len(names) > 1, f"{shown}: {NO_TRACKER} excludes all others"
    for name in names:
        if name in TRACKERS:
            missing = find_spec(name) is None
            yield missing, f"{shown}: the package {name} is not installed; pip install {name}, or leave it out"
    yield no_effect(
        given(arguments, ["project"]),
        f"without --report_to {WANDB} or --report_to {TRACKIO}",
        when=not {WANDB, TRACKIO} & set(names),
    )
    yield not arguments.project.strip() or "/" in arguments.project, f"--project {arguments.project!r}: not a name"


def watch_refusals(arguments: WatchArguments, max_steps: int) -> list[Refusal]:
    """Values that cannot work, once the number of steps is known."""
    steps, once, peak = arguments.profile_steps, arguments.flops_profile_step, arguments.peak_tflops
    given = f"--profile_steps {' '.join(map(str, steps))}"
    return [
        (bool(steps) and len(steps) != 2, f"{given}: give two numbers, the first and the last step"),
        (
            len(steps) == 2 and not 1 <= steps[0] <= steps[-1] <= max_steps,
            f"{given}: steps go from 1 to --max_steps {max_steps}, and the first step of a trace is not after its last",
        ),
        (
            once is not None and not 1 <= once <= max_steps,
            f"--flops_profile_step {once}: steps go from 1 to --max_steps {max_steps}",
        ),
        (
            once is not None and len(steps) == 2 and steps[0] <= once <= steps[-1],
            f"--flops_profile_step {once}: its counting would distort the trace of {given}; choose a different step",
        ),
        (peak is not None and peak <= 0, f"--peak_tflops {peak}: must be positive"),
    ]
