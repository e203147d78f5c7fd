"""Flags for evaluation during training."""

from __future__ import annotations

from dataclasses import dataclass

from vlm2vec.training.flags.option import Refusal, option

# In a run's folder: the name and score of its best checkpoint.
BEST = "best.json"


@dataclass
class EvaluationArguments:
    """Scores during training."""

    eval_steps: int | None = option(
        None, "Score the weights every N steps and at the end; never if not given.", "speed"
    )
    eval_dataset_name: str | None = option(
        None,
        "Folder or Hugging Face name of a dataset in MMEB-eval's layout.",
        "place",
        per_node=True,
        needs="eval_steps",
    )
    eval_image_dir: str | None = option(
        None, "Folder that the image paths of its rows start from.", "place", per_node=True, needs="eval_steps"
    )
    eval_allow_links: bool = option(
        False, "Follow links that lead out of --eval_image_dir.", "speed", needs="eval_steps"
    )
    eval_subsets: list[str] = option(
        ["all"],
        "Its datasets by name, or all, IND, OOD, classification, vqa, retrieval, grounding.",
        "speed",
        needs="eval_steps",
    )
    save_best: bool = option(
        False,
        f"Write a checkpoint whenever the overall score is the best; {BEST} names it.",
        "speed",
        needs="eval_steps",
    )


def evaluation_refusals(arguments: EvaluationArguments) -> list[Refusal]:
    """What cannot work."""
    steps = arguments.eval_steps
    absent = [f"--{name}" for name in ("eval_dataset_name", "eval_image_dir") if getattr(arguments, name) is None]
    return [
        (steps is not None and steps < 1, f"--eval_steps {steps}: must be at least 1"),
        (steps is not None and bool(absent), f"--eval_steps {steps} needs {' and '.join(absent)}"),
    ]
