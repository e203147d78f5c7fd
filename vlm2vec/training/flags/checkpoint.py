"""What a run is told of its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm2vec.training.flags.option import option


@dataclass(kw_only=True)
class CheckpointArguments:
    """When they are written, how many stay, and from which one a run goes on."""

    save_steps: int | None = option(None, "Write a checkpoint every so many steps; one is always written at the end.")
    save_total_limit: int | None = option(
        None, "Keep so many checkpoints, the newest, and the best if there is one; all if not given."
    )
    resume: str = option(
        "none", "'auto' goes on from the newest whole checkpoint of --output_dir, if there is one; or a checkpoint."
    )
    allow_changed: list[str] = field(
        default_factory=list,
        metadata={"help": "Arguments that may change the result and yet differ from the checkpoint's, with --resume."},
    )


def checkpoint_refusals(arguments: CheckpointArguments) -> list[tuple[bool, str]]:
    """What cannot work or would be ignored: whether it is so, and what to say."""
    every, most = arguments.save_steps, arguments.save_total_limit
    return [
        (every is not None and every < 1, f"--save_steps {every}: must be at least 1"),
        (most is not None and most < 1, f"--save_total_limit {most}: must be at least 1"),
        (bool(arguments.allow_changed) and arguments.resume == "none", "--allow_changed: no effect without --resume"),
    ]
