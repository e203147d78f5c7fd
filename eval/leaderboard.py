"""`python -m eval.leaderboard`: merges runs of eval.mmeb and eval.retrieval into MMEB-V2's leaderboard file.

The file's format is that of experiments/report_score_v2.py of the original (TIGER-AI-Lab/VLM2Vec, branch main):
`metadata`, and `metrics` by modality (image, visdoc, video) and dataset. A dataset without scores is "FILE_N/A".
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.original import is_original
from eval.results import prepare_output, read_scores, write_text
from eval.retrieval_table import read_retrieval
from vlm2vec.errors import InputError, run_program
from vlm2vec.evaluation.scores_file import SCORES_FILE
from vlm2vec.formats.json_files import read_json
from vlm2vec.messages.command_line import Parser
from vlm2vec.messages.words import counted
from vlm2vec.mmeb import MMEB
from vlm2vec.mmeb_v2 import VIDEO_METRIC, VIDEO_SETS, VISDOC_METRIC, VISDOC_SETS

IMAGE, VISDOC, VIDEO = "image", "visdoc", "video"
IMAGE_METRIC = "hit@1"
# The datasets of each modality, and the metric whose mean the leaderboard shows.
SETS: Mapping[str, tuple[str, ...]] = {
    IMAGE: tuple(each.name for each in MMEB.eval_datasets),
    VISDOC: tuple(each.name for each in VISDOC_SETS),
    VIDEO: tuple(each.name for each in VIDEO_SETS),
}
MAIN_METRIC = {IMAGE: IMAGE_METRIC, VISDOC: VISDOC_METRIC, VIDEO: VIDEO_METRIC}
MISSING = "FILE_N/A"
SELF_REPORTED = "Self-Reported"
_MODALITY = {name: modality for modality, names in SETS.items() for name in names}
# Metrics that `scores.json` names differently. With one truth per row, both gains of nDCG are the same.
_NAMES_OF_OURS = {
    "hit@1": "acc",
    "hit@5": "hit5",
    "hit@10": "hit10",
    "ndcg_linear@10": "ndcg10",
    "ndcg_exponential@10": "ndcg10",
    "num_pred": "num_pred",
    "num_data": "num_pred",
}
# Tolerance: a score file and `retrieval.json` hold means of the same numbers, summed in the same way.
_TOLERANCE = 1e-9

Metrics = Mapping[str, float]


@dataclass
class Merged:
    """The scores of MMEB-V2's datasets, collected from runs.

    Attributes:
        metrics: The metrics of each dataset.
        folders: The run of each dataset, for messages.
        fingerprints: The fingerprints of the runs' models, with the first run of each.
        others: Datasets that are not part of MMEB-V2.
    """

    metrics: dict[str, Metrics] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    fingerprints: dict[str, Path] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def add_model(self, folder: Path, fingerprint: str | None) -> None:
        """Records the model of a run; None: the run does not name it.

        Raises:
            InputError: It is a different model than that of the earlier runs.
        """
        if fingerprint is None:
            return
        self.fingerprints.setdefault(fingerprint, folder)
        if len(self.fingerprints) > 1:
            first = next(iter(self.fingerprints.values()))
            raise InputError(f"{folder}: scores of a different model than {first}; give the runs of one model")

    def add(self, folder: Path, name: str, metrics: Metrics) -> None:
        """Adds a dataset's metrics.

        Raises:
            InputError: An earlier run has the dataset too, or the leaderboard's metric is missing.
        """
        if name in self.folders:
            raise InputError(f"{folder}: {name} is also in {self.folders[name]}; give one run per dataset")
        metric = MAIN_METRIC[_MODALITY[name]]
        value = metrics.get(metric)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(f"{folder}: {name}: {metric} is {value!r}, not a share; score the dataset again")
        self.metrics[name], self.folders[name] = metrics, folder


def merge(runs: Sequence[Path]) -> Merged:
    """Collects the metrics of all datasets in the runs.

    Args:
        runs: Output folders of eval.mmeb or eval.retrieval, or folders that contain such folders as image/, visdoc/
            and video/.

    Raises:
        InputError: A run has no scores or damaged ones, two runs have the same dataset, the models differ, or there is
            no dataset of MMEB-V2.
    """
    merged = Merged()
    for run in runs:
        if not run.is_dir():
            raise InputError(f"{run}: no such folder")
        inside = [run / modality for modality in SETS if (run / modality).is_dir()]
        found = [_add_run(folder, merged) for folder in (run, *inside)]
        if not any(found):
            raise InputError(f"{run}: no scores; write them with python -m eval.mmeb or python -m eval.retrieval")
    if not merged.metrics:
        raise InputError(f"none of MMEB-V2's datasets is in these runs, only {', '.join(merged.others)}")
    return merged


def _add_run(folder: Path, merged: Merged) -> bool:
    """Adds the scores in one folder; returns whether it has any."""
    retrieval = read_retrieval(folder)
    if retrieval is not None:
        merged.add_model(folder, retrieval["model"]["fingerprint"])
        for name, score in retrieval["collections"].items():
            if _MODALITY.get(name) == IMAGE:
                raise InputError(
                    f"{folder}: {name}: the leaderboard ranks the candidates of each row; score it with eval.mmeb"
                )
            if name in _MODALITY:
                merged.add(folder, name, _score_file(folder, name, score["metrics"]))
            else:
                merged.others.append(name)
    if not (folder / SCORES_FILE).is_file() and (retrieval is not None or not is_original(folder)):
        return retrieval is not None
    summary = read_scores(folder)
    merged.add_model(folder, summary["model"]["fingerprint"])
    for name, score in summary["datasets"].items():
        if _MODALITY.get(name) == VISDOC:
            raise InputError(
                f"{folder}: {name}: the leaderboard searches its whole corpus; score it with eval.retrieval"
            )
        if name in _MODALITY:
            values = {key: score[own] for key, own in _NAMES_OF_OURS.items()}
            merged.add(folder, name, {key: value for key, value in values.items() if value is not None})
        else:
            merged.others.append(name)
    return True


def _score_file(folder: Path, name: str, metrics: Mapping[str, Any]) -> Metrics:
    """Reads a dataset's `NAME_score.json`, whose metrics must equal those of `retrieval.json`."""
    path = folder / f"{name}_score.json"
    score = read_json(path)
    for metric in (VISDOC_METRIC, VIDEO_METRIC):
        value, expected = score.get(metric), metrics[metric]["mean"] if metric in metrics else None
        if not isinstance(value, int | float) or expected is None or not abs(value - expected) <= _TOLERANCE:
            raise InputError(f"{path}: {metric} differs from retrieval.json; score the run again")
    return score


def means(metrics: Mapping[str, Metrics]) -> dict[str, tuple[float | None, int, int]]:
    """The mean of the main metric over the datasets that have scores, by modality and over all ("all").

    Args:
        metrics: The metrics of each dataset.

    Returns:
        For each group: the mean (None without scores), number of datasets with scores, number of datasets in all.
    """
    groups = {**SETS, "all": tuple(_MODALITY)}
    found = {}
    for group, names in groups.items():
        values = [metrics[name][MAIN_METRIC[_MODALITY[name]]] for name in names if name in metrics]
        found[group] = (math.fsum(values) / len(values) if values else None, len(values), len(names))
    return found


def leaderboard_text(metadata: Mapping[str, Any], metrics: Mapping[str, Metrics]) -> str:
    """The file's content."""
    shown = {modality: {name: metrics.get(name, MISSING) for name in names} for modality, names in SETS.items()}
    return json.dumps({"metadata": metadata, "metrics": shown}, indent=4, ensure_ascii=False) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, read, write, show."""
    arguments = parser().parse_args(argv)
    metadata = {name: getattr(arguments, name) for name in _METADATA}
    metadata["report_generated_date"] = datetime.datetime.now().isoformat()
    merged = merge(arguments.runs)
    prepare_output(arguments.output.parent)
    write_text(arguments.output, leaderboard_text(metadata, merged.metrics))
    for group, (mean, count, size) in means(merged.metrics).items():
        name = "of each modality" if group == "all" else MAIN_METRIC[group]
        value = "no scores" if mean is None else f"{100 * mean:.1f} %"
        print(f"{group} ({name}): {value}, {count} of {size} datasets")
    if merged.others:
        names = ", ".join(merged.others)
        print(f"left out: {counted(len(merged.others), 'dataset')} that MMEB-V2 does not have: {names}")
    print(f"written: {arguments.output}", flush=True)


_METADATA = (
    *("model_name", "model_backbone", "model_size", "embedding_dimension", "max_length_tokens"),
    *("model_release_date", "data_source", "url"),
)


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m eval.leaderboard",
        description="Writes the scores of evaluation runs as the JSON file that the MMEB-V2 leaderboard takes.",
        examples=(
            "python -m eval.leaderboard scores/image scores/visdoc --output submission.json --model_name my-model "
            "--model_size 4.1 --model_release_date 2026-01-31",
        ),
    )
    made.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="Folder that eval.mmeb or eval.retrieval wrote, or one with such folders as image/, visdoc/, video/.",
    )
    made.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON file to write.")
    model = made.add_argument_group("Model", "What the leaderboard shows of the model.").add_argument
    model("--model_name", required=True, metavar="NAME", help="Name of the model on the leaderboard.")
    model("--model_backbone", metavar="NAME", help="Model that it was trained from.")
    model("--model_size", type=_positive_number, help="Number of parameters, in billions.")
    model("--embedding_dimension", type=_positive_count, help="Number of dimensions of an embedding.")
    model("--max_length_tokens", type=_positive_count, help="Maximum length of an item, in tokens.")
    model("--model_release_date", type=_date, metavar="YYYY-MM-DD", help="Date of its release.")
    model("--data_source", default=SELF_REPORTED, metavar="NAME", help="Who measured the scores.")
    model("--url", help="Page of the model, its code or its paper.")
    return made


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _positive_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _date(text: str) -> str:
    try:
        date = datetime.date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a date; write YYYY-MM-DD") from error
    return date.isoformat()


if __name__ == "__main__":
    sys.exit(run_program(main))
