"""Which checkpoint a run resumes from, and which changes it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from vlm2vec.errors import InputError
from vlm2vec.training.checkpoints.record import RECORD, RunRecord, read_whole
from vlm2vec.training.checkpoints.resume import agree_on_resume, changes, resume_point
from vlm2vec.training.flags.model import FORMER_TARGETS
from vlm2vec.training.flags.run import parse_arguments
from vlm2vec.training.settings import WatchSettings
from vlm2vec.training.watch.metrics import Figures
from vlm2vec.training.watch.monitor import open_monitor

DATA = {"shards": "a", "order": "b"}
HERE = (2, 2)  # ranks, ZeRO stage


def arguments(output: Path, *extra: str, batch: str = "--global_batch_size") -> Any:
    return parse_arguments(
        [
            *("--model_name", "m", "--dataset_name", "d", "--output_dir", str(output), "--deepspeed", "z.json"),
            *("--max_steps", "9", batch, "16", *extra),
        ]
    )


def settings(output: Path, *extra: str, cluster: tuple[int, int] = HERE, **batch: str) -> Any:
    num_ranks, stage = cluster
    return arguments(output, *extra, **batch).resolve(num_ranks, {"zero_optimization": {"stage": stage}})


def write_checkpoint(output: Path, step: int, *extra: str, **record: Any) -> Path:
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(10))
    values: dict[str, Any] = {
        **{"num_ranks": 2, "zero_stage": 2, "versions": {}, "data": DATA, "files": {"weights": 10}},
        "arguments": json.loads(json.dumps(arguments(output, *extra).as_dict())),
        **record,
    }
    RunRecord(step=step, **values).write(folder / RECORD)
    return folder


def point(output: Path, *extra: str, cluster: tuple[int, int] = HERE, data: dict[str, str] = DATA) -> Any:
    warnings: list[str] = []
    found = resume_point(settings(output, *extra, cluster=cluster), data, warnings.append)
    return found, warnings


def test_auto_takes_the_newest_by_number(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        write_checkpoint(tmp_path, step)
    found, warnings = point(tmp_path, "--resume", "auto")
    assert (found.record.step, found.is_elastic, warnings) == (10, False, [])


@pytest.mark.parametrize("tear", ["short file", "no file", "no record", "half a record", "no list"])
def test_auto_skips_an_incomplete_one_with_a_warning(tmp_path: Path, tear: str) -> None:
    write_checkpoint(tmp_path, 2)
    torn = write_checkpoint(tmp_path, 3)
    if tear == "short file":
        (torn / "weights").write_bytes(bytes(9))
    elif tear == "no file":
        (torn / "weights").unlink()
    elif tear == "no record":
        (torn / RECORD).unlink()
    elif tear == "half a record":
        (torn / RECORD).write_text((torn / RECORD).read_text()[:100])
    else:
        dataclasses.replace(RunRecord.read(torn / RECORD), files={}).write(torn / RECORD)
    found, warnings = point(tmp_path, "--resume", "auto")
    assert found.record.step == 2
    assert len(warnings) == 1
    assert "skips checkpoint-3" in warnings[0]
    with pytest.raises(InputError, match="checkpoint-3"):
        point(tmp_path / "new", "--resume", str(torn))


def test_a_different_sidecar_is_a_different_run(tmp_path: Path) -> None:
    """Its folder is a place, so that its content is compared; a run without one has no content."""
    mined = ("--mined", "here", "--mined_negatives", "2")
    write_checkpoint(tmp_path, 2, *mined, data={**DATA, "mined": "c"})
    moved = ("--mined", "there", "--mined_negatives", "2", "--resume", "auto")
    found, _ = point(tmp_path, *moved, data={**DATA, "mined": "c"})
    assert found.record.step == 2
    with pytest.raises(InputError, match="mined: the mined sidecar's content differs"):
        point(tmp_path, *moved, data={**DATA, "mined": "d"})
    assert point(tmp_path, *moved, "--allow_changed", "mined", data={**DATA, "mined": "d"})[0] is not None
    with pytest.raises(InputError, match="mined_negatives: 2 -> 3"):
        point(tmp_path, *mined[:3], "3", "--resume", "auto", data={**DATA, "mined": "c"})


def test_auto_starts_where_there_is_nothing(tmp_path: Path) -> None:
    assert point(tmp_path / "new", "--resume", "auto") == (None, [])


def test_none_leaves_checkpoints_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 2)
    with pytest.raises(InputError, match="--resume auto"):
        point(tmp_path)


def test_a_path_must_not_leave_later_checkpoints_behind(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path, 2)
    write_checkpoint(tmp_path, 4)
    with pytest.raises(InputError, match=r"later checkpoints \(checkpoint-4\)"):
        point(tmp_path, "--resume", str(first))
    assert point(tmp_path / "fork", "--resume", str(first))[0].record.step == 2


@pytest.mark.parametrize("cluster", [(1, 2), (2, 3)])
def test_other_ranks_or_stages_are_elastic(tmp_path: Path, cluster: tuple[int, int]) -> None:
    write_checkpoint(tmp_path, 2)
    assert point(tmp_path, "--resume", "auto", cluster=cluster)[0].is_elastic


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        (["--temperature", "0.03"], "temperature"),
        (["--seed", "1"], "seed"),
        (["--max_steps", "12"], "max_steps"),
        (["--subset_name", "A", "B"], "subset_name"),
        (["--learning_rate", "1e-4"], "learning_rate"),
    ],
)
def test_arguments_that_change_the_result_are_refused_by_name(tmp_path: Path, extra: list[str], name: str) -> None:
    write_checkpoint(tmp_path, 2)
    with pytest.raises(InputError, match=f"--allow_changed {name}$"):
        point(tmp_path, "--resume", "auto", *extra)
    assert point(tmp_path, "--resume", "auto", *extra, "--allow_changed", name)[0]


def test_the_data_must_be_the_same(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 2)
    with pytest.raises(InputError, match=r"content differs.*--allow_changed dataset_name$"):
        point(tmp_path, "--resume", "auto", data={"shards": "x", "order": "x"})
    with pytest.raises(InputError, match=r"different order.*--allow_changed order$"):
        point(tmp_path, "--resume", "auto", data={"shards": "a", "order": "x"})


def test_what_does_not_change_the_result_may_change(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 2)
    extra = ["--chunk_tokens", "99", "--dataloader_num_workers", "7", "--logging_steps", "3", "--save_steps", "5"]
    assert point(tmp_path, "--resume", "auto", *extra, "--deepspeed", "zero3.json", "--dataset_name", "moved")[0]


def test_a_start_and_a_resume_answer_the_same_questions(tmp_path: Path) -> None:
    begun = settings(tmp_path, "--resume", "auto")
    start = agree_on_resume(begun, DATA)  # no checkpoint yet
    assert (start.step, start.is_elastic, list(start.bad_samples), start.remarks(9)) == (0, False, [], [])
    assert start.kept_graphs(begun.flags) is None
    folder = write_checkpoint(tmp_path, 2, keep_graphs=3)
    resumed = agree_on_resume(begun, DATA)
    assert (resumed.step, resumed.is_elastic, list(resumed.bad_samples)) == (2, False, [])
    assert resumed.kept_graphs(begun.flags) == 3
    assert resumed.remarks(9) == [f"resumed from {folder}: 2 of 9 steps are done"]
    assert resumed.remarks(2) == [f"{folder}: all 2 steps are done"]


def test_kept_graphs_are_not_measured_again(tmp_path: Path) -> None:
    """What was free on the device is not what is free now; another number would change the sum's rounding."""
    write_checkpoint(tmp_path, 2, keep_graphs=3)
    found = point(tmp_path, "--resume", "auto")[0]
    assert found.kept_graphs(settings(tmp_path).flags) == 3
    assert found.kept_graphs(settings(tmp_path, "--chunk_tokens", "9").flags) is None
    assert point(tmp_path, "--resume", "auto", cluster=(1, 2))[0].kept_graphs(settings(tmp_path).flags) is None


def test_a_per_device_batch_on_other_ranks_is_a_different_global_batch(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 2)
    record = read_whole(tmp_path / "checkpoint-2")
    per_rank = "--per_device_train_batch_size"
    same, other = (settings(tmp_path, cluster=(ranks, 2), batch=per_rank) for ranks in (1, 2))  # 16 a rank
    assert changes(record, same.flags, same.cluster, DATA) == {}
    found = changes(record, other.flags, other.cluster, DATA)
    assert "--global_batch_size 16 keeps it" in found["per_device_train_batch_size"]


def test_an_argument_that_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    """From before it existed: the run had what is now the default."""
    folder = write_checkpoint(tmp_path, 2)
    record = read_whole(folder)
    older = {name: value for name, value in record.arguments.items() if name != "bidirectional"}
    dataclasses.replace(record, arguments=older).write(folder / RECORD)
    assert point(tmp_path, "--resume", "auto")[0]
    with pytest.raises(InputError, match="bidirectional"):
        point(tmp_path, "--resume", "auto", "--bidirectional")


def test_records_of_older_versions_name_the_layers_of_an_adapter(tmp_path: Path) -> None:
    """Even of a run that has none."""
    old = {**arguments(tmp_path).as_dict(), "lora_target_modules": FORMER_TARGETS}
    write_checkpoint(tmp_path, 4, arguments=old)
    assert point(tmp_path, "--resume", "auto")[0].record.step == 4
    assert point(tmp_path, "--resume", "auto", "--lora_target_modules", FORMER_TARGETS)[0].record.step == 4
    adapted = tmp_path / "adapted"
    write_checkpoint(adapted, 4, arguments={**old, "lora": True})
    assert point(adapted, "--resume", "auto", "--lora", "--lora_target_modules", FORMER_TARGETS)[0].record.step == 4
    with pytest.raises(InputError, match=r"lora_target_modules: qkv_proj,o_proj,.* -> qkv_proj[;)]"):
        point(adapted, "--resume", "auto", "--lora", "--lora_target_modules", "qkv_proj")


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--allow_changed lerning_rate: no such argument"):
        point(tmp_path, "--resume", "auto", "--allow_changed", "lerning_rate")
    with pytest.raises(InputError, match="no effect without --resume"):
        arguments(tmp_path, "--allow_changed", "seed")


def test_the_log_and_tensorboard_continue_without_repeated_steps(tmp_path: Path) -> None:
    figures = dict.fromkeys(
        [
            *("loss", "hit@1", "gradient_norm", "learning_rate", "milliseconds_per_step", "pairs_per_second"),
            *("tokens_per_second", "data_wait_share", "peak_memory_gib"),
        ],
        0.0,
    )
    settings = WatchSettings(1, ("tensorboard",), "project", (), None, None)
    for first, last in ((0, 5), (3, 6)):  # a kill after 5 steps, the last checkpoint after 3
        monitor = open_monitor(settings, tmp_path, 6, first)
        for step in range(first + 1, last + 1):
            monitor.figures(step, Figures(figures | {"loss": float(10 * first + step)}, {}))
        monitor.close()
        with (tmp_path / "log.jsonl").open("a") as log:
            log.write('{"step": 1, "lo')  # torn by the kill
    lines = (tmp_path / "log.jsonl").read_text().splitlines()[:-1]
    expected = [1.0, 2.0, 3.0, 34.0, 35.0, 36.0]
    assert [json.loads(line)["loss"] for line in lines] == expected

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/train")] == list(enumerate(expected, start=1))
