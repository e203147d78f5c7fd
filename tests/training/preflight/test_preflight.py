"""Checks before the first step: messages about mismatched ranks, full disks and chunks that do not fit."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from trials.rig.launcher import REPOSITORY
from vlm2vec.batches import ChunkSizes
from vlm2vec.contrastive.watch import AnyPart, Part, Place, Watch
from vlm2vec.errors import InputError
from vlm2vec.inputs.packing import FixedCounts, TokenBudget
from vlm2vec.training.checkpoints.disk_space import check_disk, checkpoint_bytes, checkpoints_to_come
from vlm2vec.training.flags.run import RunArguments, RunSettings, parse_arguments
from vlm2vec.training.preflight.compare_ranks import differences, facts
from vlm2vec.training.preflight.graph_memory import DeviceMemory
from vlm2vec.training.preflight.out_of_memory import MemoryAdvice
from vlm2vec.training.preflight.rehearsal import ChunkMemory, PeakMeter, rehearse
from vlm2vec.training.settings import CheckpointSettings
from vlm2vec.training.watch.parts import RunPart

Usage = namedtuple("Usage", ["total", "used", "free"])
MIB = 2**20
# 4,096 rows of 4 columns each: blocks of 64 rows, unless a number is given.
WITH_NEGATIVES = [
    *("--global_batch_size", "4096", "--hard_negatives", "True"),
    *("--mined", "absent", "--mined_negatives", "2"),
]
# 1,024 rows of 1,024 columns are one block, but a rank of 8 has 128 of them.
OWN_ROWS = ["--global_batch_size", "1024"]
ONE_ROW_REMEDY = "one row of the loss does not fit: fewer hard negatives or a smaller --global_batch_size"


def arguments(*flags: str) -> RunArguments:
    return parse_arguments(
        [
            *("--model_name", "absent", "--dataset_name", "d", "--output_dir", "o", "--max_steps", "1"),
            *("--deepspeed", str(REPOSITORY / "ds_configs/zero2.json"), "--global_batch_size", "4", *flags),
        ]
    )


def settings(*flags: str, num_ranks: int = 1) -> RunSettings:
    return arguments(*flags).resolve(num_ranks, {"zero_optimization": {"stage": 2}})


def test_facts_name_flags_files_and_packages(tmp_path: Path) -> None:
    first = facts(arguments("--chunk_tokens", "100").as_dict())
    assert differences(first, first) == ""
    assert (
        differences(facts(arguments("--chunk_tokens", "200").as_dict()), first)
        == "--chunk_tokens is 200 instead of 100"
    )
    # Where the shards lie may differ from node to node.
    assert differences(facts(arguments("--chunk_tokens", "100", "--dataset_name", "e").as_dict()), first) == ""
    assert {"file vlm2vec/train.py", "package torch"} <= set(first)
    newer = {**first, "file vlm2vec/new.py": "1234"}
    assert differences(newer, first) == "file vlm2vec/new.py is 1234 instead of absent"
    engine = tmp_path / "zero.json"
    engine.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    other = facts(arguments("--chunk_tokens", "100", "--deepspeed", str(engine)).as_dict())
    assert differences(other, first).startswith("--deepspeed is ")


@pytest.mark.parametrize(
    ("limit", "every", "steps", "there", "expected"),
    [
        (None, None, (0, 10), 0, (1, 1)),
        (None, 2, (0, 10), 0, (2, 5)),
        (None, 3, (0, 10), 0, (2, 4)),
        (None, 2, (8, 10), 4, (1, 1)),
        (2, 1, (0, 10), 0, (3, 3)),
        (2, 1, (5, 10), 2, (1, 1)),
        (2, 5, (0, 10), 0, (2, 2)),
    ],
)
def test_checkpoints_that_must_fit(
    limit: int | None, every: int | None, steps: tuple[int, int], there: int, expected: tuple[int, int]
) -> None:
    assert checkpoints_to_come(saved(Path("o"), every, limit), steps, there) == expected


def saved(output_dir: Path, every: int | None, limit: int | None) -> CheckpointSettings:
    return CheckpointSettings(output_dir, every, limit, None, (), keeps_best=False, excludes_frozen=False)


def test_a_full_disk_is_refused_and_one_that_fills_up_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SimpleNamespace(module=nn.Linear(1024, 1024, bias=False), zero_optimization_stage=lambda: 2)
    assert checkpoint_bytes(engine, exclude_frozen=False) == 16 * MIB
    warnings: list[str] = []

    def check(free: int, limit: int | None) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, free))
        check_disk(engine, saved(tmp_path / "new" / "run", 1, limit), (0, 10), warnings.append)

    check(160 * MIB, None)
    check(48 * MIB, 2)
    assert warnings == []
    with pytest.raises(InputError, match=r"3 checkpoints of about 16.0 MiB do not fit into the 40.0 MiB"):
        check(40 * MIB, 2)
    check(46 * MIB, 2)  # within the estimate's error
    check(40 * MIB, None)
    assert [number in warning for number, warning in zip(("3 ch", "10 ch"), warnings, strict=True)] == [True, True]


def test_a_line_through_two_chunks_says_how_many_tokens_fit() -> None:
    line = ChunkMemory.through((100, 5 * MIB), (200, 7 * MIB), free=100 * MIB)
    assert line.fixed == pytest.approx(3 * MIB)
    assert line.a_token == pytest.approx(2 * MIB / 100)
    assert line.tokens_that_fit == 97 * 100 // 2 // 64 * 64
    # One item each: no slope.
    same = ChunkMemory.through((100, 5 * MIB), (100, 5 * MIB), free=20 * MIB)
    assert same.tokens_that_fit == 400 // 64 * 64
    assert ChunkMemory.through((100, 5 * MIB), (200, 7 * MIB), free=2 * MIB).tokens_that_fit == 0


SIZES = ChunkSizes(TokenBudget(8192), 4 * 8192, 6)
ONE_KEPT = ChunkSizes(TokenBudget(8192), 4 * 8192, 1)


class WatchAt(Watch):
    """A run's watch in its third step."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def at(self, place: Place) -> None:
        self.place = place

    def where(self) -> str:
        return f"step 3, {self.place.words}"


def advice_at(run: RunSettings, sizes: ChunkSizes, watch: WatchAt) -> MemoryAdvice:
    return MemoryAdvice(run, sizes, watch)  # type: ignore[arg-type]  # it asks only where the run is


IN_PASS_1, IN_PASS_2 = Place(Part.PASS_1, "pass 1, chunk 2 of 9"), Place(Part.PASS_2, "pass 2, chunk 2 of 9")
ANYWHERE = Place(RunPart.OTHER, "beginning")
OPTIMIZER_REMEDY = "a higher ZeRO stage, more ranks, or ds_configs/zero3_offload.json"


@pytest.mark.parametrize(
    ("place", "sizes", "flags", "expected"),
    [
        (IN_PASS_2, SIZES, [], "set --chunk_tokens 4096 (now 8192), or add --gradient_checkpointing"),
        (IN_PASS_2, SIZES, ["--gradient_checkpointing"], "set --chunk_tokens 4096 (now 8192)"),
        (IN_PASS_1, SIZES, [], "set --no_grad_chunk_tokens 16384 (now 32768)"),
        (
            Place(Part.PASS_1, "pass 1 with graph, chunk 5 of 6", is_kept=True),
            SIZES,
            [],
            "set --keep_graphs 3 (now 6)",
        ),
        (Place(Part.PASS_2, "pass 2, kept chunk 5", is_kept=True), SIZES, [], "set --keep_graphs 3 (now 6)"),
        (
            Place(Part.PASS_1, "pass 1 with graph, chunk 1 of 1", is_kept=True),
            ONE_KEPT,
            ["--gradient_checkpointing"],
            "set --chunk_tokens 4096 (now 8192)",
        ),
        (
            IN_PASS_1,
            ChunkSizes(FixedCounts(8, 4)),
            ["--gradient_checkpointing"],
            "set --gc_q_chunk_size 4 --gc_p_chunk_size 2 (now 8 and 4)",
        ),
        (Place(Part.LOSS, "loss"), SIZES, [*OWN_ROWS, "--loss_block_rows", "64"], "set --loss_block_rows 32 (now 64)"),
        (Place(Part.LOSS, "loss"), SIZES, WITH_NEGATIVES, "set --loss_block_rows 32 (now 64)"),
        (Place(Part.LOSS, "loss"), SIZES, OWN_ROWS, "set --loss_block_rows 64 (now 128)"),
        (Place(Part.LOSS, "loss"), SIZES, ["--loss_block_rows", "1"], ONE_ROW_REMEDY),
        (Place(RunPart.OPTIMIZER, "optimizer step"), SIZES, [], OPTIMIZER_REMEDY),
    ],
)
def test_the_flag_follows_from_the_place(
    place: Place, sizes: ChunkSizes, flags: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda: 5)
    cause = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(InputError) as told_error, advice_at(settings(*flags, num_ranks=8), sizes, WatchAt(place)):
        raise RuntimeError("rank 5, pass 1, chunk 2 (an item)") from cause
    text = str(told_error.value)
    assert text.startswith("rank 5 on ")
    assert f"ran out of memory in step 3, {place.words}: " in text
    assert text.endswith(expected)
    assert "\n" not in text


@pytest.mark.parametrize("words", ["", "loss", "pass 1, chunk 2 of 9", "pass 1 with graph", "pass 2, kept chunk 5"])
@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Part.PASS_1, "set --no_grad_chunk_tokens 16384 "),
        (Part.PASS_2, "set --chunk_tokens 4096 "),
        (Part.LOSS, "set --loss_block_rows 32 (now "),
        (Part.COLLECTIVES, "the optimizer's states"),
        (RunPart.OPTIMIZER, "the optimizer's states"),
        (RunPart.START, "the optimizer's states"),  # its words name the model's folder, whatever that is called
    ],
)
def test_the_words_of_a_place_decide_nothing(part: AnyPart, expected: str, words: str) -> None:
    advice = advice_at(settings(*OWN_ROWS, "--loss_block_rows", "64"), SIZES, WatchAt(ANYWHERE))
    assert advice.remedy(Place(part, words)).startswith(expected)
    kept = advice.remedy(Place(part, words, is_kept=True))
    assert kept == "set --keep_graphs 3 (now 6)"


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="another"), advice_at(settings(), SIZES, WatchAt(ANYWHERE)):
        raise RuntimeError("another")


class Device:
    """An accelerator with 1,000 MiB, 200 of them in weights; a chunk takes 10 MiB and 1 a token."""

    def __init__(self) -> None:
        self.peak = 0

    def meter(self) -> PeakMeter:
        state = DeviceMemory(allocated=200 * MIB, free=800 * MIB, total=1000 * MIB)
        return PeakMeter(lambda: state, lambda: self.peak, lambda: None)

    def run(self, tokens: int) -> None:
        self.peak = (200 + 10 + tokens) * MIB
        if self.peak > 1000 * MIB:
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_the_recommended_value_is_measured_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts of the chunk run before it; the value is below what is free less a tenth of the device."""
    device = Device()
    monkeypatch.setattr(
        "vlm2vec.training.preflight.rehearsal._forward_backward", lambda step, tokens: device.run(tokens)
    )
    monkeypatch.setattr("vlm2vec.training.preflight.rehearsal.budget_tokens", lambda inputs, tokens: tokens)
    monkeypatch.setattr(
        "vlm2vec.training.preflight.rehearsal.largest_chunk",
        lambda inputs, packing, part=1: packing.chunk_tokens // part,
    )
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    sizes = ChunkSizes(TokenBudget(2048))
    watch = WatchAt(ANYWHERE)
    memory = advice_at(settings("--chunk_tokens", "2048"), sizes, watch)
    unused: Any = None
    with pytest.raises(InputError) as refused, memory:
        rehearse(unused, unused, sizes, watch, memory.measured, device.meter())
    assert watch.place == Place(Part.PASS_2, "pass 2, the largest chunk")
    assert "set --chunk_tokens 640 (now 2048; measured: 1.00 MiB a token, 0.7 GiB free)" in str(refused.value)
    device.run(640)
