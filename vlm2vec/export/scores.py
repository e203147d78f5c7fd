"""The scores of an evaluation, for the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlm2vec.errors import InputError
from vlm2vec.evaluation.scores_file import read_summary

_FURTHER_GROUPS = ("IND", "OOD", "overall")


@dataclass(frozen=True)
class Mean:
    """Precision@1 of a group of datasets, unweighted.

    Attributes:
        acc: The mean, 0 to 1.
        chance: What guessing gives, 0 to 1.
        num_datasets: How many datasets the mean has.
        num_datasets_of_benchmark: How many the benchmark has in this group.
    """

    acc: float
    chance: float
    num_datasets: int
    num_datasets_of_benchmark: int


@dataclass(frozen=True)
class Scores:
    """What an evaluation wrote.

    Attributes:
        benchmark: Its name, "unknown" for a user's own datasets.
        model: The `--model_name` or `--checkpoint_path` that was scored.
        fingerprint: A hash of that model's files.
        means: By meta-task; then "IND", "OOD" where there are such, and "overall".
    """

    benchmark: str
    model: str
    fingerprint: str
    means: Mapping[str, Mean]


def read_scores(folder: Path) -> Scores:
    """Reads what `python -m eval.mmeb` wrote to a folder.

    Raises:
        InputError: No such file, a damaged one, or another program's.
    """
    try:
        content = read_summary(folder)
    except InputError as error:
        raise InputError(f"--scores {error}") from error
    groups = content["meta_tasks"] | {name: content[name] for name in _FURTHER_GROUPS if content.get(name)}
    means = {name: Mean(**{field: mean[field] for field in Mean.__dataclass_fields__}) for name, mean in groups.items()}
    model = content["model"]
    scored = model["checkpoint_path"] or model["model_name"]
    return Scores(content["benchmark"] or "unknown", scored, model["fingerprint"], means)
