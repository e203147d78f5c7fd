from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import convert, download
from data_prep.command_line import Parser
from eval import report
from eval.mmeb_flags import parse_arguments as parse_evaluation
from trials.rig.hand_made_train import make_dataset, row, write_rows
from vlm2vec.errors import EXIT_BAD_INPUT, InputError, printable, run_program
from vlm2vec.training.flags.run import parse_arguments as parse_training
from vlm2vec.training.settings import WatchSettings
from vlm2vec.training.watch.monitor import open_monitor
from vlm2vec.training.watch.sinks.sink import RunCard

NAME = "é\udce9-图"  # the middle: how Python reads a file name that is not UTF-8


def ascii_output(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Sets output and error up as `PYTHONIOENCODING=ascii` does; returns what gives all that was written."""
    written = io.BytesIO()
    streams = [io.TextIOWrapper(written, "ascii", errors="strict", write_through=True) for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    return lambda: (streams, written.getvalue().decode("ascii"))[
        1
    ]  # a stream that is collected closes what it writes to


def run(monkeypatch: pytest.MonkeyPatch, main: Callable[[], int | None], *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, words)])
    return run_program(main)


def test_names_that_the_output_cannot_show_do_not_end_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = ascii_output(monkeypatch)
    dataset = make_dataset(tmp_path / "data")
    write_rows(dataset, [row(0), row(1, qry_image_path="images/A/Train/é.png")])
    flags = ("--dataset_name", dataset, "--subset_name", "A")
    assert run(monkeypatch, convert.main, *flags, "--num_workers", "0", "--output_dir", tmp_path / "o") == 3
    assert run(monkeypatch, download.main, *flags) == 3
    assert written().count("images/A/Train/\\xe9.png") >= 2
    assert run(monkeypatch, convert.main, "--dataset_name", NAME, "--subset_name", "A", "--output_dir", "o") == 2
    assert run_program(lambda: report.main([NAME])) == EXIT_BAD_INPUT
    assert written().count("error: \\xe9\\udce9-\\u56fe") == 2


def test_tensorboard_and_log_take_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = ascii_output(monkeypatch)
    settings = WatchSettings(1, ("tensorboard",), "project", (), None, None)
    monitor = open_monitor(settings, tmp_path, max_steps=9)

    def main() -> None:
        monitor.begin(RunCard({"output_dir": NAME}, {"output_dir": NAME}, {}, {"output_dir": NAME}))
        monitor.bad_sample(1, NAME)
        monitor.close()

    assert run_program(main) == 0
    assert "\\xe9\\udce9-\\u56fe" in written()
    assert "é\\udce9-图".encode() in next((tmp_path / "tensorboard").iterdir()).read_bytes()
    assert printable("plain é") == "plain é"


def test_a_tilde_is_the_home_folder_in_every_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    parser = Parser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image_dir", type=Path)
    assert vars(parser.parse_args(["~/a", "--image_dir=~/b"])) == {
        "folder": tmp_path / "a",
        "image_dir": tmp_path / "b",
    }
    (tmp_path / "recipe.yaml").write_text("output_dir: ~/run\nmodel_name: ~/model\ndataset_name: ~/shards\n")
    flags = ("--deepspeed=~/zero2.json", "--max_steps", "1", "--global_batch_size", "4")
    for config in (("--config", "~/recipe.yaml"), ("--config=~/recipe.yaml",)):
        arguments = parse_training([*config, *flags])
        places = (arguments.training.output_dir, arguments.model.model_name, arguments.data.dataset_name)
        assert places == tuple(f"{tmp_path}/{name}" for name in ("run", "model", "shards"))
        assert arguments.training.deepspeed == f"{tmp_path}/zero2.json"
    words = ["--model_name", "~/m", "--dataset_name", "~/d", "--image_dir", "~/images", "--encode_output_path", "~/o"]
    model, data = parse_evaluation(words)
    assert [model.model_name, data.image_dir] == [f"{tmp_path}/m", f"{tmp_path}/images"]
    assert parse_evaluation([*words[:1], "owner/a~b", *words[2:]])[0].model_name == "owner/a~b"


def test_blanks_in_a_list_with_commas_are_no_part_of_the_names() -> None:
    base = ("--model_name", "m", "--dataset_name", "d", "--output_dir", "o", "--deepspeed", "e", "--max_steps", "1")
    more = ("--global_batch_size", "4", "--lora")
    modules = parse_training(
        [*base, *more, "True", "--lora_target_modules", " q_proj, v_proj ,"]
    ).model.lora_target_modules
    assert modules == "q_proj,v_proj"


def test_bad_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise InputError("x.png: empty")

    assert run_program(main) == EXIT_BAD_INPUT
    assert capsys.readouterr().err == "error: x.png: empty\n"
