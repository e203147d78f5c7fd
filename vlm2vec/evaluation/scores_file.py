"""Schema, reader and writer of `scores.json`; a damaged or edited file is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vlm2vec.backbones.image_limits import ImageLimits
from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.errors import InputError
from vlm2vec.evaluation.aggregation import OVERALL
from vlm2vec.evaluation.data.selection import DISTRIBUTIONS
from vlm2vec.evaluation.metrics import METRICS
from vlm2vec.formats.json_files import CHECKSUM, StrictModel, checked, read_json, with_checksum, without_checksum

SCORES_FILE = "scores.json"
# A stored mean may differ from the mean computed here only by rounding.
_MEAN_TOLERANCE = 1e-9

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Interval = Annotated[list[Share], Field(min_length=2, max_length=2)]
Task = Literal["classification", "vqa", "retrieval", "grounding", "other"]


class _Figures(StrictModel):
    acc: Share
    acc_interval: Interval
    chance: Share
    hit5: Share
    hit10: Share
    mrr: Share
    ndcg10: Share

    @model_validator(mode="after")
    def _interval_in_order(self) -> _Figures:
        if self.acc_interval[0] > self.acc_interval[1]:
            raise ValueError("acc_interval: the lower bound is above the upper bound")
        return self


class _Dataset(_Figures):
    meta_task: Task
    distribution: Literal["IND", "OOD"] | None
    num_correct: Count
    num_pred: Annotated[Count, Field(ge=1)]
    num_tied: Count
    num_duplicate_truth: Count
    image_dir: str = ""
    dataset_split: str = "test"
    data: str | None = None

    @model_validator(mode="after")
    def _counts_fit(self) -> _Dataset:
        if max(self.num_correct, self.num_tied, self.num_duplicate_truth) > self.num_pred:
            raise ValueError(f"a count of rows is above the {self.num_pred} rows that were scored")
        if abs(self.acc * self.num_pred - self.num_correct) > 0.5:
            raise ValueError(f"acc {self.acc} is not {self.num_correct} of {self.num_pred}")
        return self


class _Mean(_Figures):
    num_datasets: Annotated[Count, Field(ge=1)]
    num_datasets_of_benchmark: Count


class _Model(ImageLimits):
    model_name: str
    checkpoint_path: str | None
    fingerprint: str
    prompt_format: PromptFormat | None = None


class _Scores(StrictModel):
    model: _Model
    warnings: list[str]
    benchmark: str | None
    num_rows: Count
    num_items: Count | None
    datasets: Annotated[dict[str, _Dataset], Field(min_length=1)]
    meta_tasks: dict[Task, _Mean]
    overall: _Mean
    ind: Annotated[_Mean | None, Field(alias="IND")] = None
    ood: Annotated[_Mean | None, Field(alias="OOD")] = None
    image_dir: str = ""
    dataset_split: str = "test"
    strict_original: bool = False
    checksum: str | None = None

    @model_validator(mode="after")
    def _sums_fit(self) -> _Scores:
        if self.num_rows != sum(each.num_pred for each in self.datasets.values()):
            raise ValueError("num_rows is not the sum of the datasets' rows")
        means: dict[str, _Mean | None] = {"IND": self.ind, "OOD": self.ood, OVERALL: self.overall}
        means.update({str(task): mean for task, mean in self.meta_tasks.items()})
        for group in {*means, *(name for each in self.datasets.values() for name in _groups(each))}:
            members = [each for each in self.datasets.values() if group in _groups(each)]
            mean = means.get(group)
            if mean is None and not members:
                continue
            if mean is None or mean.num_datasets != len(members):
                raise ValueError(f"{group}: not the mean of its {len(members)} datasets")
            for name in ("acc", "chance", *METRICS):
                expected = sum(getattr(each, name) for each in members) / len(members)
                if abs(getattr(mean, name) - expected) > _MEAN_TOLERANCE:
                    raise ValueError(f"{group}.{name}: not the mean of its datasets")
        return self


def _groups(dataset: _Dataset) -> tuple[str, ...]:
    return (dataset.meta_task, *(name for name in DISTRIBUTIONS if dataset.distribution == name), OVERALL)


def scores_text(summary: Mapping[str, Any]) -> str:
    """Content of `scores.json`, with a checksum that reveals later changes."""
    return json.dumps(with_checksum(summary), indent=2, ensure_ascii=False) + "\n"


def read_summary(folder: Path) -> dict[str, Any]:
    """Reads a folder's `scores.json`.

    Raises:
        InputError: The file is missing, damaged, changed after it was written, or not as `eval.mmeb` writes it.
    """
    path = folder / SCORES_FILE
    if not path.exists():
        raise InputError(f"{folder}: no {SCORES_FILE}; write it with python -m eval.mmeb")
    summary = read_json(path)
    try:
        json.dumps(summary, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which could not be printed
        raise InputError(f"{path}: holds text that is not Unicode ({error.reason}); score the run again") from error
    try:
        checked(_Scores, summary, path)
    except InputError as error:
        raise InputError(f"{error}; the file is not as python -m eval.mmeb writes it, score the run again") from error
    if CHECKSUM not in summary and any(dataset.get("data") for dataset in summary["datasets"].values()):
        raise InputError(f"{path}: its checksum is missing; score the run again")
    return without_checksum(summary, path)
