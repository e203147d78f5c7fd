"""Where metrics go: the same fields to every sink, in groups; trackers continue a run, and never end one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from tests.rig.wandb_files import wandb_history
from vlm2vec.batches import GlobalOrder
from vlm2vec.shards import ShardSet
from vlm2vec.training.settings import WatchSettings
from vlm2vec.training.watch.first_pairs import ShownPair, first_pairs
from vlm2vec.training.watch.metrics import HARDEST_NEGATIVE, POSITIVE, SIMILARITY_BINS, Figures
from vlm2vec.training.watch.monitor import Monitor, open_monitor
from vlm2vec.training.watch.sinks.log import LogSink
from vlm2vec.training.watch.sinks.sink import RunCard, Sink
from vlm2vec.training.watch.sinks.tags import tag_of
from vlm2vec.training.watch.sinks.terminal import ROWS_OF_A_HEADING, WIDTH, TerminalSink

CARD = RunCard(
    facts={"model": "base, 1,000 parameters", "data": "é | " + "words " * 40},
    flags={"learning_rate": 0.1, "lora": True, "subset_name": ["A", "B"], "output_dir": "run"},
    changed={"learning_rate": 0.1},
    comparable={"learning_rate": 0.1, "num_ranks": 2, "lora": True, "subset_name": "['A', 'B']"},
)
COUNTS = [0] * 60 + [5, 0, 7] + [0] * 17
SUMMARY = {
    **{"meta_tasks": {"vqa": {"acc": 0.25}}, "overall": {"acc": 0.5}, "warnings": ["few rows"]},
    "datasets": {"A": {"acc": 0.75}},
}


def values(**others: float) -> dict[str, float]:
    """An interval's metrics, as far as a terminal needs them."""
    names = ("loss", "hit@1", "gradient_norm", "learning_rate", "milliseconds_per_step", "data_wait_share")
    return {**dict.fromkeys((*names, "pairs_per_second", "peak_memory_gib"), 1.0), **others}


def monitor_of(folder: Path, *trackers: str, first_step: int = 0) -> Monitor:
    return open_monitor(WatchSettings(1, trackers, "project", (), None, None), folder, 9, first_step)


@pytest.fixture(scope="module")
def pairs(mini_shards_dir: Path) -> list[ShownPair]:
    shards = ShardSet.open(mini_shards_dir)
    return first_pairs(GlobalOrder(shards.num_samples, 16, seed=3).batch(0), shards)


def report(monitor: Monitor, pairs: Sequence[ShownPair], steps: Sequence[int]) -> None:
    """What a run reports from its start to its end."""
    monitor.begin(CARD)
    monitor.pairs(pairs)
    for step in steps:
        figures = {**values(loss=float(step)), "time_ms/pass_1": 2.0, "subset_loss/A": 3.0}
        monitor.figures(step, Figures(figures, {POSITIVE: COUNTS, HARDEST_NEGATIVE: [0] * SIMILARITY_BINS}))
    monitor.scores(steps[-1], SUMMARY)
    monitor.bad_sample(steps[-1], "A/3: <damaged>")
    monitor.done("done")
    monitor.close()


def test_tensorboard_shows_pairs_histograms_and_what_runs(
    pairs: list[ShownPair], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(monitor_of(tmp_path, "tensorboard"), pairs, [1, 2])
    assert capsys.readouterr().out.endswith(f"done\nCurves: tensorboard --logdir {tmp_path}\n")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert len(events.Tags()["images"]) == sum(pair.image is not None for pair in pairs) > 0
    text = {name: events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode() for name in TEXTS}
    assert all(pair.subset.replace("_", r"\_") in text["pairs"] for pair in pairs)
    first, changed, every = text["configuration"].split("###")
    assert "| model | base, 1,000 parameters |" in first
    assert [part.count("--learning_rate") for part in (first, changed, every)] == [0, 1, 1]
    assert [part.count("--output_dir") for part in (first, changed, every)] == [0, 0, 1]
    histogram = events.Histograms("similarity/positive_histogram")[-1]
    assert histogram.histogram_value.num == 12
    assert (histogram.histogram_value.min, histogram.histogram_value.max) == pytest.approx((0.5, 0.575))
    assert "similarity/hardest_negative_histogram" not in events.Tags()["histograms"]
    assert [event.value for event in events.Scalars("loss/train")] == [1.0, 2.0]
    assert [event.value for event in events.Scalars("eval_dataset/A")] == [0.75]


TEXTS = ("pairs", "configuration")


def test_runs_can_be_compared_by_flags_and_last_values(pairs: list[ShownPair], tmp_path: Path) -> None:
    report(monitor_of(tmp_path, "tensorboard"), [], [1])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    content = {
        tag: events.SummaryMetadata(tag).plugin_data.content
        for tag in (metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG)
    }
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["learning_rate"].number_value == 0.1
    assert [start.hparams["num_ranks"].number_value, start.hparams["lora"].string_value] == [2.0, "True"]
    assert set(start.hparams) == set(CARD.comparable)
    metrics = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG]).metric_infos
    shown = {metric.name.tag for metric in metrics}
    assert {"loss/train", "eval/overall"} <= shown <= {*events.Tags()["scalars"], "similarity/hardest_negative"}
    assert metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG]).status == 1  # success


def test_rows_of_the_terminal_stay_below_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    steps = 200_000
    sink = TerminalSink(steps, first_step=0)
    sink.begin(CARD)
    long = ShownPair("A/7", "A", "word " * 99, "t", None)
    sink.pairs([long, long])
    capsys.readouterr()
    largest = values(loss=12.3456, gradient_norm=123.456, learning_rate=1.26e-5, pairs_per_second=99_999.0, mfu=0.45)
    largest |= {"similarity/hardest_negative": 0.98765, "milliseconds_per_step": 123_456.0, "peak_memory_gib": 139.04}
    for step in range(ROWS_OF_A_HEADING + 1):
        sink.figures(step, Figures(largest, {}))
    lines = capsys.readouterr().out.splitlines()
    headings = [number for number, line in enumerate(lines) if "loss" in line]
    assert headings == [0, ROWS_OF_A_HEADING + 1]
    names = ["step", "loss", "hit@1", "hardest", "norm", "lr", "s/step", "pairs/s", "MFU", "wait", "GiB", "ETA"]
    assert lines[0].split() == names
    expected = ["0/200000", "12.3456", "1.000", "0.988", "123.5", "1.3e-05", "123.5", "99999", "45%", "100%", "139.0"]
    assert lines[1].split()[: len(expected)] == expected
    assert lines[1].endswith("285d 18:40")
    assert max(map(len, lines)) <= WIDTH + 4  # the largest numbers that may come


def test_what_a_run_says_first_stays_below_100_columns(
    pairs: list[ShownPair], capsys: pytest.CaptureFixture[str]
) -> None:
    sink = TerminalSink(100, first_step=0)
    sink.begin(CARD)
    sink.pairs([*pairs, ShownPair("A/7", "A", "word " * 99, "t", None)])
    sink.figures(10, Figures(values(), {}))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[0] == "model  base, 1,000 parameters"
    assert [line for line in lines if line.startswith("pair ")][-1] == "pair 5 of the first batch: A/7"
    assert "MFU" not in lines[-2]  # no peak, no figure


def test_every_tracker_gets_the_fields_of_the_log_and_continues_a_run(
    pairs: list[ShownPair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a network: wandb in offline mode, trackio in a folder. Steps after a kill are reported again."""
    for name, value in {
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    run.mkdir()
    report(monitor_of(run, "tensorboard", "wandb", "trackio"), pairs, [1, 2, 3])
    report(monitor_of(run, "tensorboard", "wandb", "trackio", first_step=2), pairs, [3, 4])
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    fields = {tag_of(name) for line in lines for name in line if name not in ("step", "bad_sample")}

    starts = sorted((run / "wandb").glob("offline-run-*"))
    tracker_id = (run / "tracker_id").read_text().strip()
    # wandb adds -1 where both starts fall into one second.
    assert [re.sub(rf"^offline-run-[\d_]+-{tracker_id}(-1)?$", "", each.name) for each in starts] == ["", ""]
    of_starts = [list(wandb_history(each)) for each in starts]
    assert [[row["loss/train"] for row in rows if "loss/train" in row] for rows in of_starts] == [[1, 2, 3], [3, 4]]
    seen = {name for rows in of_starts for row in rows for name in row if not name.startswith("_")}
    assert seen == fields | {"step", "pairs", "data/bad_sample"}

    output = capsys.readouterr()
    assert f"\nwandb: wandb sync {run}/wandb/offline-run-*\ntrackio: trackio show --project project\n" in output.out
    assert "Trackio" not in output.out  # its greetings
    assert output.err == ""

    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("project")
    assert name == f"run-{tracker_id}"
    logs = SQLiteStorage.get_logs("project", name)
    assert [row["loss/train"] for row in logs if "loss/train" in row] == [1, 2, 3, 3, 4]
    images = {f"pairs/{number}_{pair.subset}" for number, pair in enumerate(pairs, 1) if pair.image is not None}
    own = {"step", "timestamp", "configuration", "data/bad_sample", *images}
    assert {name for row in logs for name in row} == fields | own
    config = SQLiteStorage.get_run_config("project", name)
    assert config is not None
    assert config["learning_rate"] == 0.1


class Broken(Sink):
    """A tracker whose server is gone."""

    is_optional = True

    def figures(self, step: int, figures: Figures) -> None:
        """Fails."""
        raise ConnectionError("no route\nto host")


def test_a_tracker_that_fails_is_reported_once_and_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = Monitor([LogSink(tmp_path, 0), Broken(), TerminalSink(9, 0)])
    for step in (1, 2):
        monitor.figures(step, Figures(values(), {}))
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    warnings = re.findall(r"^warning: .*", capsys.readouterr().out, re.MULTILINE)
    assert warnings == ["warning: Broken failed and gets no more metrics (no route to host)"]
    monitor = Monitor([LogSink(tmp_path, 0)])
    monitor.close()
    with pytest.raises(ValueError, match="closed file"):  # the log is no option
        monitor.figures(1, Figures(values(), {}))
