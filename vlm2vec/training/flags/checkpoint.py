"""Flags for checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from vlm2vec.training.flags.option import Refusal, option

AUTO, NONE = "auto", "none"


@dataclass(kw_only=True)
class CheckpointArguments:
    """Checkpoints and resume: when checkpoints are written, how many are kept, and where a run resumes."""

    save_steps: int | None = option(
        None, "Write a checkpoint every N steps and at the end. If not given: at the end only.", "speed"
    )
    save_total_limit: int | None = option(
        None,
        "Keep at most N checkpoints: the newest ones, and the best if there is one. If not given: all.",
        "speed",
    )
    resume: str = option(
        NONE,
        f"Resume from this checkpoint; '{AUTO}': from the newest complete checkpoint of --output_dir, if there is one.",
        "place",
        metavar="auto|none|DIR",
    )
    allow_changed: list[str] = option(
        [],
        "Names of arguments that may differ from the checkpoint's on --resume although they change the result.",
        "speed",
        metavar="NAME",
        needs="resume",
    )


def checkpoint_refusals(arguments: CheckpointArguments) -> list[Refusal]:
    """Values that cannot work or would be ignored."""
    every, most = arguments.save_steps, arguments.save_total_limit
    return [
        (every is not None and every < 1, f"--save_steps {every}: must be at least 1"),
        (most is not None and most < 1, f"--save_total_limit {most}: must be at least 1"),
    ]
