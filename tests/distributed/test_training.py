"""The training program on real ranks: the same run on any number of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distributed.launcher import REPOSITORY, environment, free_port, run_ranks
from vlm2vec.export import export
from vlm2vec.training.checkpoint import find_checkpoint


def flags(model: Path, shards: Path, output: Path, stage: int, *extra: str) -> list[str]:
    return [
        *("--model_name", str(model), "--dataset_name", str(shards), "--output_dir", str(output)),
        *("--deepspeed", str(REPOSITORY / f"ds_configs/zero{stage}.json")),
        *("--global_batch_size", "64", "--max_steps", "5", "--logging_steps", "1", "--chunk_tokens", "512"),
        *("--learning_rate", "1e-4", "--temperature", "0.05", "--max_len", "64", "--dataloader_num_workers", "0"),
        *extra,
    ]


def exported(run: Path) -> Path:
    export(find_checkpoint(run), run / "exported")
    return run / "exported"


@pytest.fixture(scope="module")
def one_rank(mini_model_dir: Path, mini_shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("one_rank")
    run_ranks(1, ["-m", "vlm2vec.train", *flags(mini_model_dir, mini_shards_dir, run, 2)], run)
    exported(run)
    return run


@pytest.mark.parametrize(
    ("ranks", "stage", "extra"),
    [
        (2, 2, ["--chunk_tokens", "300", "--dataloader_num_workers", "1"]),
        (3, 3, []),
        (2, 1, ["--gc_q_chunk_size", "5", "--gc_p_chunk_size", "7"]),
    ],
)
def test_five_steps_end_at_the_same_parameters(
    ranks: int,
    stage: int,
    extra: list[str],
    one_rank: Path,
    mini_model_dir: Path,
    mini_shards_dir: Path,
    tmp_path: Path,
) -> None:
    arguments = flags(mini_model_dir, mini_shards_dir, tmp_path, stage)
    if "--gc_q_chunk_size" in extra:
        place = arguments.index("--chunk_tokens")
        del arguments[place : place + 2]
    run_ranks(ranks, ["-m", "vlm2vec.train", *arguments, *extra], tmp_path)
    start = load_file(mini_model_dir / "model.safetensors")
    expected = load_file(one_rank / "exported" / "model.safetensors")
    got = load_file(exported(tmp_path) / "model.safetensors")
    assert max(float((expected[name] - start[name]).abs().max()) for name in start) > 3e-4
    assert max(float((expected[name] - got[name]).abs().max()) for name in expected) < 1e-5
    lines = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one_rank, tmp_path)
    ]
    for ours, theirs in zip(*lines, strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["hit@1"] == pytest.approx(theirs["hit@1"], abs=1 / 64)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)


def test_the_deepspeed_launcher_trains_an_adapter(mini_model_dir: Path, mini_shards_dir: Path, tmp_path: Path) -> None:
    """As the README says it, on 2 ranks; TensorBoard gets the promised fields."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(free_port())),
            *("--module", "vlm2vec.train"),
            *flags(mini_model_dir, mini_shards_dir, tmp_path, 2, "--lora", "--lora_r", "4", "--max_steps", "2"),
        ],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "step 2/2 | loss" in done.stdout
    assert (tmp_path / "checkpoint-2" / "run.json").is_file()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    promised = {"loss", "hit@1", "learning_rate", "gradient_norm", "pairs_per_second"}
    assert {f"run/{name}" for name in promised} <= set(tags["scalars"])
    assert "arguments/text_summary" in tags["tensors"]
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event.value for event in events.Scalars("run/loss")] == pytest.approx([line["loss"] for line in log])
