"""What a run is told of scoring itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm2vec.training.flags.option import option

# In a run's folder: the name and score of its best checkpoint.
BEST = "best.json"


@dataclass
class EvaluationArguments:
    """Scores during training."""

    eval_steps: int | None = option(None, "Score the weights every so many steps and at the end; never if not given.")
    eval_dataset_name: str | None = option(None, "Folder or Hugging Face name of a dataset in MMEB-eval's layout.")
    eval_image_dir: str | None = option(None, "Folder that the image paths of its rows start from.")
    eval_allow_links: bool = option(False, "Follow links that lead out of --eval_image_dir.")
    eval_subsets: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={"help": "Its datasets by name, or all, IND, OOD, classification, vqa, retrieval, grounding."},
    )
    save_best: bool = option(False, f"Write a checkpoint whenever the overall score is the best; {BEST} names it.")


def evaluation_refusals(arguments: EvaluationArguments) -> list[tuple[bool, str]]:
    """What cannot work or would be ignored: whether it is so, and what to say."""
    steps, defaults = arguments.eval_steps, vars(EvaluationArguments())
    absent = [f"--{name}" for name in ("eval_dataset_name", "eval_image_dir") if getattr(arguments, name) is None]
    idle = [f"--{name}" for name, value in vars(arguments).items() if value != defaults[name]]
    return [
        (steps is None and bool(idle), f"{', '.join(idle)}: no effect without --eval_steps"),
        (steps is not None and steps < 1, f"--eval_steps {steps}: must be at least 1"),
        (steps is not None and bool(absent), f"--eval_steps {steps} needs {' and '.join(absent)}"),
    ]
