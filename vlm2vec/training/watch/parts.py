"""What a run's time is spent on."""

from __future__ import annotations

from vlm2vec.contrastive.watch import AnyPart, Part


class RunPart(AnyPart):
    """The parts of a run around its steps."""

    # Up to the first step.
    START = "start"
    OPTIMIZER = "optimizer"
    PROFILE = "profile"
    CHECKPOINT = "checkpoint"
    # No training: left out of a step's time.
    EVALUATION = "evaluation"
    # What is outside of all parts.
    OTHER = "other"


# All that a step's time is made of.
STEP_PARTS: tuple[AnyPart, ...] = (
    *(Part.DATA_WAIT, Part.PASS_1, Part.LOSS, Part.PASS_2),
    *(RunPart.OPTIMIZER, Part.COLLECTIVES, RunPart.CHECKPOINT, RunPart.OTHER),
)
# Neither measured nor named in traces: a step's time begins after the start, and a profile ends while it is written.
UNTIMED: frozenset[AnyPart] = frozenset({RunPart.START, RunPart.PROFILE})
