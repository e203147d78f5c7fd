"""The training program on real ranks: the same run on any number of them."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.rig.made_up_sidecar import write_sidecar
from trials.rig.forked import run_ranks
from trials.rig.launcher import REPOSITORY, environment, free_port
from trials.rig.patience import HANG_SECONDS
from trials.rig.run_flags import run_flags
from vlm2vec.export import export
from vlm2vec.shards import ShardSet
from vlm2vec.training.checkpoints.writer import find_checkpoint
from vlm2vec.training.flags.config_file import CONFIG_FILE
from vlm2vec.training.flags.run import parse_arguments
from vlm2vec.training.watch.sinks.tags import GROUPS

pytestmark = pytest.mark.numeric

REFERENCE = "zero2"
REPEATED = "repeated"
MINED = "mined"
# Everything that a sidecar gives, and all that the loss makes of it; its folder comes with the run. Two steps of half
# the batch.
OF_SIDECAR = [
    *("--max_steps", "2", "--global_batch_size", "32", "--homogeneous_batch_size", "8", "--mined_clusters", "True"),
    *("--mined_negatives", "2", "--hard_negatives", "--hard_negative_scope", "own", "--hardness_weight", "9"),
    *("--false_negative_source", "teacher", "--distill_weight", "0.5", "--distill_temperature", "0.5"),
    *("--learn_temperature", "--temperature_by", "subset", "--temperature_learning_rate", "0.05"),
]
WATCHED = ["--profile_steps", "2", "3", "--flops_profile_step", "4", "--peak_tflops", "0.01"]
COMMON = [
    *("--global_batch_size", "64", "--max_steps", "5", "--logging_steps", "1"),
    *("--learning_rate", "1e-4", "--temperature", "0.05", "--max_len", "64", "--dataloader_num_workers", "0"),
]
# By the number of ranks, which train them in one start: the ZeRO stage and what else differs from run to run.
RUNS: dict[int, dict[str, tuple[int, list[str]]]] = {
    1: {REFERENCE: (2, ["--chunk_tokens", "512"]), MINED: (2, ["--chunk_tokens", "512", *OF_SIDECAR])},
    2: {
        # Also watched closely, which changes nothing.
        "zero2": (2, ["--chunk_tokens", "300", "--dataloader_num_workers", "1", *WATCHED]),
        "zero1": (1, ["--gc_q_chunk_size", "5", "--gc_p_chunk_size", "7"]),
        MINED: (2, ["--chunk_tokens", "300", "--dataloader_num_workers", "1", *OF_SIDECAR]),
    },
    3: {"zero3": (3, ["--chunk_tokens", "512", "--deterministic"])},
}


@pytest.fixture(scope="module")
def trained(
    mini_model_dir: Path, mini_shards_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """Trains and exports the runs of a number of ranks, once; gives the folder that holds each by its name."""

    @cache
    def train(ranks: int) -> Path:
        root = tmp_path_factory.mktemp(f"ranks{ranks}")
        mined = write_sidecar(root / "sidecar", ShardSet.open(mini_shards_dir))
        runs = [
            run_flags(mini_model_dir, mini_shards_dir, root / name, f"zero{stage}", *COMMON, *extra)
            + (["--mined", str(mined)] if name == MINED else [])
            for name, (stage, extra) in RUNS[ranks].items()
        ]
        if ranks == 1:
            runs.append(["--config", str(root / REFERENCE / CONFIG_FILE), "--output_dir", str(root / REPEATED)])
        (root / "runs.json").write_text(json.dumps(runs))
        run_ranks(ranks, ["-m", "tests.distributed.workers.training", str(root / "runs.json")], root)
        for name in RUNS[ranks]:
            export(find_checkpoint(root / name), root / name / "exported")
        return root

    return train


@pytest.mark.parametrize(("ranks", "name"), [(2, "zero2"), (2, "zero1"), (3, "zero3")])
def test_five_steps_end_at_the_same_parameters(
    ranks: int, name: str, trained: Callable[[int], Path], mini_model_dir: Path
) -> None:
    reference, run = trained(1) / REFERENCE, trained(ranks) / name
    start = load_file(mini_model_dir / "model.safetensors")
    expected = load_file(reference / "exported" / "model.safetensors")
    got = load_file(run / "exported" / "model.safetensors")
    moved = max(float((expected[weight] - start[weight]).abs().max()) for weight in start)
    assert moved > 3e-4
    assert max(float((expected[weight] - got[weight]).abs().max()) for weight in expected) < 0.02 * moved
    lines = [[json.loads(line) for line in (each / "log.jsonl").read_text().splitlines()] for each in (reference, run)]
    for ours, theirs in zip(*lines, strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["hit@1"] == pytest.approx(theirs["hit@1"], abs=1 / 64)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)


def test_what_a_sidecar_gives_is_the_same_on_any_number_of_ranks(trained: Callable[[int], Path]) -> None:
    """Clusters, mined negatives, a teacher's false negatives and scores; the losses and gradients are equal."""
    lines = [
        [json.loads(line) for line in (trained(ranks) / MINED / "log.jsonl").read_text().splitlines()]
        for ranks in (1, 2)
    ]
    for ours, theirs in zip(*lines, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-5)
        assert ours["similarity/hardest_negative"] == pytest.approx(theirs["similarity/hardest_negative"], rel=1e-6)
        assert ours["teacher_divergence"] == pytest.approx(theirs["teacher_divergence"], rel=1e-6)
        assert ours["masked_similar_pairs"] == theirs["masked_similar_pairs"]
        learned = [name for name in ours if name.startswith("temperature/")]
        assert len(learned) > 1
        assert [ours[name] for name in learned] == pytest.approx([theirs[name] for name in learned], rel=1e-5)
    assert min(line["teacher_divergence"] for line in lines[0]) > 0
    assert max(line["masked_similar_pairs"] for line in lines[0]) > 0
    assert len({lines[0][-1][name] for name in learned}) > 1


def test_the_configuration_of_a_run_repeats_it(trained: Callable[[int], Path]) -> None:
    first, again = trained(1) / REFERENCE, trained(1) / REPEATED
    numbers = [
        [(line["loss"], line["gradient_norm"], line["learning_rate"]) for line in map(json.loads, text.splitlines())]
        for text in ((each / "log.jsonl").read_text() for each in (first, again))
    ]
    assert len(numbers[0]) == 5
    assert numbers[0] == numbers[1]
    text = (first / CONFIG_FILE).read_text()
    assert text.startswith(
        "# The configuration in force, after 0 steps, on 1 rank, ZeRO-2; usable as --config.\n# vlm2vec "
    )
    assert all(word in text for word in ("deepspeed 0.", "gloo", "sdpa", "AdamW", "\nkeep_graphs: 1  # resolved\n"))
    arguments = [parse_arguments(["--config", str(each / CONFIG_FILE)]) for each in (first, again)]
    differing = {name for name, value in arguments[0].as_dict().items() if value != arguments[1].as_dict()[name]}
    assert differing == {"output_dir"}


def test_the_parts_of_a_step_add_up_to_its_time(trained: Callable[[int], Path]) -> None:
    for ranks, name in ((1, REFERENCE), (2, "zero2")):
        lines = [json.loads(line) for line in (trained(ranks) / name / "log.jsonl").read_text().splitlines()]
        assert len(lines) == 5
        for line in lines:
            parts = {name: value for name, value in line.items() if name.startswith("time_ms/")}
            assert sum(parts.values()) == pytest.approx(line["milliseconds_per_step"], rel=1e-6)
            assert min(parts[f"time_ms/{part}"] for part in ("pass_1", "loss", "pass_2", "optimizer")) > 0
            assert (
                sum(line["similarity_histogram/positive"]) == sum(line["similarity_histogram/hardest_negative"]) == 64
            )
            assert 0 < line["data_wait_share"] < 1
            assert 0.1 < line["peak_memory_gib"] < 4
        assert ("mfu" in lines[0]) == (ranks == 2)  # where a peak was given
    assert sum(line["time_ms/collectives"] for line in lines) > 0


def test_traces_hold_the_parts_of_the_chosen_steps(trained: Callable[[int], Path]) -> None:
    folder = trained(2) / "zero2" / "profile"
    traces = [folder / f"rank{rank}_steps2-3.pt.trace.json" for rank in (0, 1)]
    assert sorted(folder.iterdir()) == [folder / "flops_step4.txt", *traces]
    for trace in traces:
        names = Counter(event.get("name") for event in json.loads(trace.read_text())["traceEvents"])
        assert {names[f"vlm2vec/{part}"] for part in ("pass_1", "loss", "pass_2", "optimizer")} == {2}
        assert names["vlm2vec/data_wait"] > 4
        assert names["vlm2vec/collectives"] > 6
    text = (folder / "flops_step4.txt").read_text()
    assert "Profile Summary at step 4" in text
    assert "Phi3DecoderLayer" in text


def test_the_deepspeed_launcher_trains_an_adapter(
    forked_python: Path, mini_model_dir: Path, mini_shards_dir: Path, tmp_path: Path
) -> None:
    """Through launch/local.sh, on 2 ranks, of which one imports all by itself; TensorBoard gets the promised fields."""
    own = ["--chunk_tokens", "512", "--max_steps", "2"]
    chosen = run_flags(mini_model_dir, mini_shards_dir, tmp_path, "zero2", *COMMON, *own)
    done = subprocess.run(
        [str(REPOSITORY / "launch/local.sh"), *chosen, "--warmup_steps", "0", "--lora", "--lora_r", "4"],
        cwd=REPOSITORY,
        env={
            **environment(forked_python),
            **{"MODEL": str(mini_model_dir), "SHARDS": str(mini_shards_dir), "OUTPUT": str(tmp_path)},
            **{"RECIPE": "launch/recipes/mini.yaml", "GPUS": "2", "MASTER_PORT": str(free_port())},
            "REAL_RANK": "0",
        },
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stderr == ""  # where Python's warnings go
    assert not re.search(r"Warning|\[WARNING\]|\[INFO\]|deprecated", done.stdout)  # of libraries and the launcher
    own_lines = [line for line in done.stdout.splitlines() if "/" not in line.split("  ")[-1]]  # no path at the end
    assert max(map(len, own_lines)) < 100
    assert re.search(r"^step +loss  hit@1 .*\n 1/2 .*\n 2/2 +\d", done.stdout, re.MULTILINE)
    assert (tmp_path / "checkpoint-2" / "run.json").is_file()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    promised = {"loss/train", "loss/hit@1", "optimizer/learning_rate", "optimizer/gradient_norm"}
    assert {*promised, "speed/pairs_per_second"} <= set(tags["scalars"])
    assert {name.split("/")[0] for name in tags["scalars"]} == {*GROUPS} - {"eval", "eval_dataset", "other"}
    assert {"configuration/text_summary", "pairs/text_summary"} <= set(tags["tensors"])
    assert tags["histograms"] == ["similarity/positive_histogram", "similarity/hardest_negative_histogram"]
    assert any(name.startswith("pairs/") for name in tags["images"])
    assert done.stdout.count("of the first batch:") == 4
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event.value for event in events.Scalars("loss/train")] == pytest.approx([line["loss"] for line in log])
