"""Flags for checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from vlm2vec.training.flags.option import Refusal, option

AUTO, NONE = "auto", "none"


@dataclass(kw_only=True)
class CheckpointArguments:
    """When checkpoints are written, how many are kept, and from which one a run resumes."""

    save_steps: int | None = option(None, "Write a checkpoint every N steps, and always one at the end.", "speed")
    save_total_limit: int | None = option(
        None, "Keep at most N checkpoints: the newest, and the best if there is one; all if not given.", "speed"
    )
    resume: str = option(
        NONE,
        f"'{AUTO}' resumes from the newest complete checkpoint of --output_dir, if there is one; or a checkpoint.",
        "place",
    )
    allow_changed: list[str] = option(
        [],
        "Arguments that may change the result and yet differ from the checkpoint's, with --resume.",
        "speed",
        needs="resume",
    )


def checkpoint_refusals(arguments: CheckpointArguments) -> list[Refusal]:
    """What cannot work or would be ignored."""
    every, most = arguments.save_steps, arguments.save_total_limit
    return [
        (every is not None and every < 1, f"--save_steps {every}: must be at least 1"),
        (most is not None and most < 1, f"--save_total_limit {most}: must be at least 1"),
    ]
