"""The plan's memory against what engines hold: every shipped configuration, on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.estimate_worker import CASES
from tests.distributed.launcher import REPOSITORY, run_ranks
from vlm2vec.training.estimate.plan import FETCHES, MOST_FETCHES

# What docs/benchmarks.md says of the plan's error. States are exact but for the padding of partitions.
AT_REST_ERROR = 0.005
PEAK_ERROR = 0.08


@pytest.fixture(scope="module")
def measured(mini_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("estimate")
    output = folder / "measured.json"
    worker = ["-m", "tests.distributed.estimate_worker", "--model_name", str(mini_model_dir), "--output", str(output)]
    run_ranks(2, worker, folder, timeout=240)
    return {(each["engine"], each["kind"]): each for each in json.loads(output.read_text())}


@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_planned_memory_is_what_engines_hold(
    case: tuple[str, str], measured: dict[tuple[str, str], dict[str, Any]]
) -> None:
    plan, found = measured[case]["at_rest"]
    assert plan == pytest.approx(found, rel=AT_REST_ERROR)
    plan, found = measured[case]["peak"]
    assert plan == pytest.approx(found, rel=PEAK_ERROR)


def test_every_shipped_configuration_became_an_engine() -> None:
    assert {engine for engine, _ in CASES} == {path.stem for path in (REPOSITORY / "ds_configs").glob("*.json")}


def test_zero_3_gathers_weights_as_often_as_planned(measured: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert measured["zero3_offload", "full bf16"]["gathered"] == pytest.approx(FETCHES, rel=0.01)
    for kind in ("full fp32, checkpointed", "LoRA bf16"):
        assert FETCHES < measured["zero3", kind]["gathered"] < MOST_FETCHES
