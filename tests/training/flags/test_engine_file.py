"""The `--deepspeed` file: shipped ones pass; an unknown key is reported with its place and the nearest key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trials.rig.launcher import REPOSITORY
from vlm2vec.errors import InputError
from vlm2vec.training.flags.engine_file import read_engine_file


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_shipped_files_pass(path: Path) -> None:
    assert read_engine_file(path) == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"zero_optimisation": {}}, "unknown key 'zero_optimisation'; did you mean 'zero_optimization'?"),
        ({"wall_clock_breakdwn": True}, "did you mean 'wall_clock_breakdown'?"),
        ({"zero_optimization": {"stage": 2, "overlap_com": True}}, "'zero_optimization.overlap_com'; did you mean"),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memmory": True}}},
            "'zero_optimization.offload_optimizer.pin_memmory'; did you mean "
            "'zero_optimization.offload_optimizer.pin_memory'",
        ),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "many"}}, "'zero_optimization.reduce_bucket_size'"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": 7}},
            "'zero_optimization.offload_param' must be an object",
        ),
        ({"zero_optimization": {"stage": 0}}, "must be 1, 2 or 3, not 0"),
        ({"zero_optimization": []}, "expected an object with a section"),
        ({"train_batch_size": 8}, "remove 'train_batch_size', it follows from --global_batch_size"),
        ({"flops_profiler": {"enabled": True}}, "--flops_profile_step"),
        ({"steps_per_print": 8}, "--logging_steps"),
        ({"communication_data_type": "fp16"}, "reduced in float32"),
        ({"zero_optimization": {"stage": 3, "memory_efficient_linear": False}}, "(false): it follows from --bf16 and"),
        (
            {"zero_optimization": {"stage": 2, "zero_quantized_gradients": True}},
            "(true): ranks would exchange rounded values",
        ),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, 'write "offload_optimizer": {"device": "cpu"}'),
        (
            {"zero_optimization": {"stage": 2, "stage3_max_live_parameters": 7}},
            "'zero_optimization.stage3_max_live_parameters' (7): it has no effect in stage 2, only in 3",
        ),
        ({"zero_optimization": {"stage": 3, "allgather_bucket_size": 7}}, "no effect in stage 3, only in 1 and 2"),
        ({"zero_optimization": {"stage": 3, "module_granularity_threshold": 5}}, "stops with a shape error"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}, "(2): it is not tested"),
        ({"zero_optimization": {"stage": True}}, "must be 1, 2 or 3, not True"),
        (
            {"zero_optimization": {"stage": 2, "round_robin_gradients": True, "contiguous_gradients": False}},
            "remove 'zero_optimization.round_robin_gradients' (true): with it, DeepSpeed 0.19.8 mixes up",
        ),
    ],
)
def test_refusals_name_file_and_key(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.write_text(json.dumps(({} if "zero_optimisation" in change else {"zero_optimization": {"stage": 2}}) | change))
    with pytest.raises(InputError) as refused:
        read_engine_file(path)
    assert told in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
