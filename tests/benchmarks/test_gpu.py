"""The program that measures on a GPU, in its small form, and what it says where there is none."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu
from benchmarks.suites import SUITES
from tests.distributed.launcher import REPOSITORY, environment
from tests.patience import HANG_SECONDS


@pytest.mark.parametrize("name", gpu.ROWS)
def test_every_row_is_a_run_that_the_program_takes(name: str) -> None:
    arguments, tiny = (gpu.train_arguments(gpu.ROWS[name], is_tiny) for is_tiny in (False, True))
    assert arguments.training.chunk_tokens == 32 * tiny.training.chunk_tokens
    assert arguments.training.global_batch_size == 1024
    assert arguments.model.lora != gpu.ROWS[name].is_full
    config = gpu.model_config(arguments, tiny=False)
    assert (config.hidden_size, config.num_hidden_layers, config.vision_config.num_hidden_layers) == (3072, 32, 24)


def test_the_small_form_measures_a_row() -> None:
    command = ["-m", "benchmarks.gpu", "--tiny", "--steps", "1", "--peak_tflops", "0.01", "--measure", "keep_8"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["pairs_per_second"] > 0
    assert 10 < found["tokens_per_second"] / found["pairs_per_second"] < 200
    assert 0 < found["mfu"] < 1
    assert 0.5 < found["pass_1"] + found["pass_2"] < 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be measured")
def test_without_a_gpu_nothing_is_invented(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--rows", "lora", "full"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[1:] for row in rows] == [[gpu.NOT_MEASURED] * 4 + [f"{gpu.NOT_MEASURED} |"]] * 2
    assert SUITES["gpu"].command == "benchmarks.gpu"
