"""Flags for evaluation during training."""

from __future__ import annotations

from dataclasses import dataclass

from vlm2vec.training.flags.option import Refusal, option

# File in a run's folder with the name and score of its best checkpoint.
BEST = "best.json"


@dataclass
class EvaluationArguments:
    """Evaluation during training: scores of the weights on an evaluation set, every N steps."""

    eval_steps: int | None = option(
        None, "Score the weights every N steps and at the end. If not given: never.", "speed"
    )
    eval_dataset_name: str | None = option(
        None,
        "Folder or Hugging Face name of a dataset in MMEB-eval's layout. Required with --eval_steps.",
        "place",
        metavar="DIR|NAME",
        per_node=True,
        needs="eval_steps",
    )
    eval_image_dir: str | None = option(
        None,
        "Folder that the image paths of its rows are relative to. Required with --eval_steps.",
        "place",
        metavar="DIR",
        per_node=True,
        needs="eval_steps",
    )
    eval_allow_links: bool = option(
        False, "Follow symbolic links that lead out of --eval_image_dir.", "speed", needs="eval_steps"
    )
    eval_subsets: list[str] = option(
        ["all"],
        "Datasets to score, by name, or all, IND, OOD, classification, vqa, retrieval, grounding.",
        "speed",
        metavar="NAME",
        needs="eval_steps",
    )
    save_best: bool = option(
        False,
        f"Write a checkpoint whenever the overall score is the best so far; {BEST} names it.",
        "speed",
        needs="eval_steps",
    )


def evaluation_refusals(arguments: EvaluationArguments) -> list[Refusal]:
    """Values that cannot work."""
    steps = arguments.eval_steps
    absent = [f"--{name}" for name in ("eval_dataset_name", "eval_image_dir") if getattr(arguments, name) is None]
    return [
        (steps is not None and steps < 1, f"--eval_steps {steps}: must be at least 1"),
        (steps is not None and bool(absent), f"--eval_steps {steps} needs {' and '.join(absent)}"),
    ]
