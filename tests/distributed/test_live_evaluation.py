"""Scores during training on real ranks equal those of the exported weights and do not change the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.mini_mmeb import EVAL_FOLDER
from eval import mmeb
from tests.rig.qwen_golden import model_folder
from trials.rig.forked import run_ranks
from trials.rig.run_flags import run_flags
from vlm2vec.export import export
from vlm2vec.formats.json_files import read_json, without_checksum

pytestmark = pytest.mark.numeric

SUBSETS = ("Digits-10", "Pairs_t2i")
STEPS = 3
# Unlike the base's: whoever loads the export must find them in its folder. Most queries are longer than 12 tokens.
MAX_LEN = 12
LIMITS = {"lora": ("num_crops", 2), "full": ("num_crops", 2), "qwen3_vl": ("max_pixels", 8192)}
COMMON = [
    *("--global_batch_size", "32", "--max_steps", str(STEPS), "--logging_steps", "1"),
    *("--learning_rate", "1e-3", "--temperature", "0.05", "--max_len", str(MAX_LEN)),
    *("--dataloader_num_workers", "0", "--chunk_tokens", "512"),
]
# By name: the ZeRO stage and what else a pair of runs, with and without scores, shares. Dropout shows whether random
# numbers were drawn in between.
PAIRS: dict[str, tuple[int, list[str]]] = {
    "lora": (2, ["--lora", "--lora_r", "4", "--lora_dropout", "0.2"]),
    "full": (3, []),
}
# Another family, with scores alone: batches of texts run the dummy of its tower where other ranks have images.
ALONE = {"qwen3_vl": (3, ["--prompt_format", "qwen3_vl_embedding"])}
SCORED = [*PAIRS, *ALONE]


@pytest.fixture(scope="module")
def runs(
    mini_mmeb_dir: Path, mini_model_dir: Path, mini_shards_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Both pairs and the other family, trained on two ranks in one start."""
    root = tmp_path_factory.mktemp("live")
    data = mini_mmeb_dir / EVAL_FOLDER
    scored = ["--eval_steps", "2", "--eval_dataset_name", str(data), "--eval_image_dir", str(data / "images")]
    scored += ["--eval_subsets", *SUBSETS, "--save_best"]
    commands = []
    for name, (stage, extra) in {**PAIRS, **ALONE}.items():
        model = mini_model_dir if name in PAIRS else model_folder(name)
        limit, value = LIMITS[name]
        for suffix, flags in (("plain", []), ("scored", scored)):
            own = [*COMMON, f"--{limit}", str(value), *extra, *flags]
            output = root / f"{name}_{suffix}"
            if name in PAIRS or flags:
                commands.append(run_flags(model, mini_shards_dir, output, f"zero{stage}", *own))
    (root / "runs.json").write_text(json.dumps(commands))
    run_ranks(2, ["-m", "tests.distributed.workers.training", str(root / "runs.json")], root)
    return root


def log_of(run: Path) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """Lines of steps, and of scores by step."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scores = {line["step"]: line for line in lines if "eval/overall" in line}
    return [line for line in lines if "loss" in line], scores


@pytest.mark.parametrize("name", PAIRS)
def test_scoring_does_not_change_the_training(runs: Path, name: str) -> None:
    plain, _ = log_of(runs / f"{name}_plain")
    scored, _ = log_of(runs / f"{name}_scored")
    assert len(plain) == STEPS
    same = ("step", "loss", "gradient_norm", "hit@1", "similarity/positive")
    assert [{key: line[key] for key in same} for line in plain] == [{key: line[key] for key in same} for line in scored]


@pytest.mark.parametrize("name", SCORED)
def test_scores_are_those_of_the_exported_weights(runs: Path, name: str, mini_mmeb_dir: Path, tmp_path: Path) -> None:
    _, scores = log_of(runs / f"{name}_scored")
    assert sorted(scores) == [2, STEPS]  # every second step, and the end
    export(runs / f"{name}_scored" / f"checkpoint-{STEPS}", tmp_path / "model")
    data = mini_mmeb_dir / EVAL_FOLDER
    mmeb.main(
        [
            *("--model_name", str(tmp_path / "model"), "--subset_name", *SUBSETS),
            *("--dataset_name", str(data), "--image_dir", str(data / "images")),
            *("--encode_output_path", str(tmp_path / "scores"), "--dataloader_num_workers", "0"),
        ]
    )
    expected = json.loads((tmp_path / "scores/scores.json").read_text())
    limit, value = LIMITS[name]
    assert (expected["model"]["max_len"], expected["model"][limit]) == (MAX_LEN, value)
    for dataset in SUBSETS:
        assert scores[STEPS][f"eval_dataset/{dataset}"] == expected["datasets"][dataset]["acc"]
    assert scores[STEPS]["eval/overall"] == pytest.approx(expected["overall"]["acc"])
    assert scores[STEPS]["eval/IND"] == pytest.approx(expected["IND"]["acc"])


@pytest.mark.parametrize("name", PAIRS)
def test_the_best_checkpoint_is_kept_and_named(runs: Path, name: str) -> None:
    run = runs / f"{name}_scored"
    _, scores = log_of(run)
    best = without_checksum(read_json(run / "best.json"), run / "best.json")
    highest = max(line["eval/overall"] for line in scores.values())
    first = min(step for step, line in scores.items() if line["eval/overall"] == highest)
    assert best == {"checkpoint": f"checkpoint-{first}", "score": pytest.approx(highest)}
    assert (run / best["checkpoint"] / "run.json").is_file()
    # A step without a new best score and without --save_steps leaves no checkpoint.
    assert not (runs / f"{name}_plain" / "checkpoint-2").exists()
    assert (run / "checkpoint-2").exists()


def test_tensorboard_has_the_scores(runs: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs / "lora_scored/tensorboard"))
    events.Reload()
    assert {"eval/overall", "eval/classification", "eval/IND", "eval_dataset/Pairs_t2i"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Scalars("eval/overall")] == [2, STEPS]
