"""The scoring program, with vectors that the test chooses."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval import mmeb, report
from eval.invocation import read_invocations
from trials.rig.hand_made_eval import row, write_dataset, write_image
from vlm2vec import __version__
from vlm2vec.errors import EXIT_BAD_INPUT, InputError, run_program
from vlm2vec.evaluation.store import EvalStore

EAST, NORTH, NEAR_EAST = [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]
# See the fixture `choose`.
Choose = Callable[[dict[str, list[float]]], list[str]]
QUESTION = "<|image_1|> east?"
VECTORS = {QUESTION: EAST, "up": NORTH, "yes": NEAR_EAST, "no": NORTH, "it's\ntrue": EAST}


@pytest.fixture
def options(tmp_path: Path, mini_model_dir: Path) -> list[str]:
    """A folder with GQA (image queries, 1 of 2 rows won) and a user's own dataset (2 of 3), and its options."""
    write_image(tmp_path / "images/GQA/1.png")
    gqa = [
        row(QUESTION, ["yes", "no"], "GQA/1.png"),
        row(QUESTION, ["no", "yes", "it's\ntrue"], "GQA/1.png"),
    ]
    write_dataset(tmp_path / "data", "GQA", gqa)
    own = [row("up", ["no", "yes"]), row("up", ["yes", "no"]), row("up", ["no", "yes"])]
    write_dataset(tmp_path / "data", "own", own)
    return [
        *("--model_name", str(mini_model_dir), "--dataset_name", str(tmp_path / "data")),
        *("--image_dir", str(tmp_path / "images"), "--encode_output_path", str(tmp_path / "out")),
        *("--dataloader_num_workers", "0"),
    ]


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Choose:
    """Puts vectors by text in the encoder's place; gives the list of texts that it is asked for."""
    asked: list[str] = []

    def install(vectors: dict[str, list[float]]) -> list[str]:
        def encode(setup: Any, store: EvalStore, *_: Any) -> None:
            plan, items = store.plan(), store.items()
            for number in setup.blocks:
                texts = [items.text(plan.order[each]) for batch in plan.blocks()[number] for each in plan.rows(batch)]
                asked.extend(texts)
                store.write_block(number, np.asarray([vectors[text] for text in texts], dtype=np.float32))

        monkeypatch.setattr(mmeb, "encode", encode)
        return asked

    return install


def scores(folder: Path) -> Any:
    return json.loads((folder / "out/scores.json").read_text())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_with_known_answers(
    tmp_path: Path, options: list[str], choose: Choose, mini_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = choose(VECTORS)
    mmeb.main(options)
    out, summary = tmp_path / "out", scores(tmp_path)
    assert sorted(path.name for path in out.iterdir()) == [
        *("GQA_pred.txt", "GQA_score.json", "embeddings", "own_pred.txt", "own_score.json"),
        *("predictions.parquet", "scored_by.json", "scores.json"),
    ]
    (call,) = read_invocations(out)
    assert call.command == f"python -m eval.mmeb {shlex.join(options)}"
    assert (call.version, call.num_ranks, call.num_encoded, call.datasets) == (__version__, 1, 5, ["GQA", "own"])
    assert call.device.startswith("CPU")
    assert json.loads((out / "GQA_score.json").read_text()) == {"acc": 0.5, "num_correct": 1, "num_pred": 2}
    assert json.loads((out / "own_score.json").read_text()) == {"acc": 2 / 3, "num_correct": 2, "num_pred": 3}
    assert (out / "GQA_pred.txt").read_text().splitlines() == ["('yes', '')", "(\"it's\\ntrue\", '')"]
    assert (out / "own_pred.txt").read_text().splitlines() == ["('no', '')"] * 3
    assert sorted(asked) == sorted(VECTORS)
    assert summary["model"]["model_name"] == str(mini_model_dir)
    assert summary["benchmark"] == "MMEB"
    assert (summary["num_rows"], summary["num_items"]) == (5, 5)
    assert summary["datasets"]["GQA"]["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert summary["overall"]["acc"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert summary["overall"]["mrr"] == pytest.approx(((1 + 1 / 3) / 2 + (1 + 1 / 2 + 1) / 3) / 2)
    low, high = summary["overall"]["acc_interval"]
    assert 0 <= low < summary["overall"]["acc"] < high <= 1
    assert any(line.startswith("GQA: 2 rows, but MMEB has 1,000") for line in summary["warnings"])
    predictions = pq.read_table(out / "predictions.parquet").to_pydict()
    assert predictions["dataset"] == ["GQA"] * 2 + ["own"] * 3
    assert predictions["rank"] == [1, 3, 1, 2, 1]
    assert predictions["top_text"][1][:3] == ["it's\ntrue", "yes", "no"]
    assert predictions["query_image"][0] == "GQA/1.png"
    assert "warning: GQA: 2 rows" in capsys.readouterr().out


def test_a_second_run_encodes_nothing_and_gives_the_same_scores(
    tmp_path: Path, options: list[str], choose: Choose
) -> None:
    asked = choose(VECTORS)
    mmeb.main(options)
    first = (tmp_path / "out/scores.json").read_bytes()
    told = (tmp_path / "out/scored_by.json").read_bytes()
    asked.clear()
    mmeb.main(options)
    assert asked == []
    assert (tmp_path / "out/scores.json").read_bytes() == first
    assert (tmp_path / "out/scored_by.json").read_bytes() == told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("weights", r"holds scores of a different model \(.*/model; fingerprint \w+, now \w+\)"),
        ("crops", r"holds scores with other settings \(num_crops 4, now 1\)"),
        ("image", "holds scores of GQA on different rows or images"),
        ("text", "holds scores of own on different rows or images"),
        ("path", "holds scores of GQA on different rows or images"),
    ],
)
def test_something_else_is_refused_and_its_embeddings_are_never_reused(
    tmp_path: Path, options: list[str], choose: Choose, mini_model_dir: Path, change: str, message: str
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in mini_model_dir.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    options[1] = str(model)
    asked = choose({**VECTORS, "Yes": NORTH})
    mmeb.main(options)
    asked.clear()
    if change == "weights":
        data = bytearray((model / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (model / "model.safetensors").write_bytes(bytes(data))
    elif change == "crops":
        options += ["--num_crops", "1"]
    elif change == "image":
        write_image(tmp_path / "images/GQA/1.png", (0, 0, 255))
    elif change == "text":
        write_dataset(tmp_path / "data", "own", [row("up", ["Yes", "no"])])
    else:
        write_image(tmp_path / "images/GQA/2.png")
        write_dataset(tmp_path / "data", "GQA", [row(QUESTION, ["yes", "no"], "GQA/2.png")] * 2)
    before = files(tmp_path / "out")
    with pytest.raises(InputError, match=message) as refused:
        mmeb.main(options)
    assert "choose a different --encode_output_path, or delete that folder" in str(refused.value)
    assert files(tmp_path / "out") == before
    assert not asked
    (tmp_path / "out/scores.json").unlink()  # as if the first run had ended before its end
    mmeb.main(options)
    assert asked
    assert len(list((tmp_path / "out/embeddings").iterdir())) == 1


def test_a_collapsed_model_loses_every_row_and_is_reported(tmp_path: Path, options: list[str], choose: Choose) -> None:
    choose(dict.fromkeys(VECTORS, EAST))
    mmeb.main(options)
    assert scores(tmp_path)["overall"]["acc"] == 0
    assert any("it has collapsed" in line for line in scores(tmp_path)["warnings"])
    mmeb.main([*options, "--strict_original", "--encode_output_path", str(tmp_path / "strict/out")])
    tmp_path /= "strict"
    assert scores(tmp_path)["overall"]["acc"] == 1
    assert scores(tmp_path)["strict_original"] is True


def test_only_the_selected_datasets_are_read(tmp_path: Path, options: list[str], choose: Choose) -> None:
    choose(VECTORS)
    (tmp_path / "data/own/test-00000-of-00001.parquet").write_bytes(b"broken")
    mmeb.main([*options, "--subset_name", "vqa"])
    assert list(scores(tmp_path)["datasets"]) == ["GQA"]


def test_more_datasets_of_the_same_model_are_added(tmp_path: Path, options: list[str], choose: Choose) -> None:
    choose(VECTORS)
    mmeb.main([*options, "--subset_name", "own", "GQA", "--encode_output_path", str(tmp_path / "at_once")])
    at_once = json.loads((tmp_path / "at_once/scores.json").read_text())
    mmeb.main([*options, "--subset_name", "own"])
    mmeb.main([*options, "--subset_name", "GQA"])
    added = scores(tmp_path)
    # How many items both have together was not counted; all else is as if both were scored at once.
    assert added.pop("num_items") is None
    assert at_once.pop("num_items") == 5
    assert [value.pop("checksum") for value in (added, at_once)]
    added["warnings"], at_once["warnings"] = set(added["warnings"]), set(at_once["warnings"])
    assert added == at_once
    together, parts = (pq.read_table(tmp_path / name / "predictions.parquet") for name in ("at_once", "out"))
    assert parts.equals(together)
    report.main([str(tmp_path / "out")])
    # Once more, alone: its scores are replaced by the same.
    mmeb.main([*options, "--subset_name", "own"])
    assert set(scores(tmp_path)["datasets"]) == {"GQA", "own"}
    assert pq.read_table(tmp_path / "out/predictions.parquet").equals(together)


def test_scores_counted_differently_are_not_added(tmp_path: Path, options: list[str], choose: Choose) -> None:
    choose(VECTORS)
    mmeb.main(options)
    with pytest.raises(InputError, match="strict_original False, now True"):
        mmeb.main([*options, "--strict_original"])
    with pytest.raises(InputError, match="holds scores with --benchmark MMEB, now folder"):
        mmeb.main([*options, "--benchmark", "folder"])


def test_scores_of_another_program_are_not_overwritten(tmp_path: Path, options: list[str], choose: Choose) -> None:
    choose(VECTORS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/GQA_score.json").write_text('{"acc": 0.5, "num_correct": 1, "num_pred": 2}')
    with pytest.raises(InputError, match=r"holds GQA_score.json of a different evaluation"):
        mmeb.main(options)


def test_a_run_that_cannot_be_written_leaves_the_earlier_scores_as_they_were(
    tmp_path: Path, options: list[str], choose: Choose
) -> None:
    choose(VECTORS)
    mmeb.main(options)
    before = scores(tmp_path)
    (tmp_path / "out/own_pred.txt").unlink()
    (tmp_path / "out/own_pred.txt").mkdir()
    assert run_program(lambda: mmeb.main(options)) == EXIT_BAD_INPUT
    assert scores(tmp_path) == before
    report.main([str(tmp_path / "out")])
    assert not list((tmp_path / "out").glob(".*"))


def test_linked_images_are_scored_where_that_is_allowed(
    tmp_path: Path, options: list[str], choose: Choose, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images/GQA").rename(tmp_path / "disk2")
    (tmp_path / "images/GQA").symlink_to(tmp_path / "disk2")
    asked = choose(VECTORS)
    assert run_program(lambda: mmeb.main(options)) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert "row 0: " in error
    assert "GQA/1.png: a link that leads out" in error
    assert "pass --allow_links" in error
    assert (error.count("\n"), asked) == (1, [])
    mmeb.main([*options, "--allow_links"])
    assert set(asked) == set(VECTORS)
    capsys.readouterr()
    for flags, num_images in (([], 0), (["--allow_links"], 1)):
        report.main([str(tmp_path / "out"), *flags])
        assert (tmp_path / "out/report.html").read_text().count("data:image/jpeg") == num_images


def change(option: str, value: str) -> Callable[[Path, list[str]], None]:
    def apply(folder: Path, options: list[str]) -> None:
        options += [option, value]

    return apply


def remove_image(folder: Path, options: list[str]) -> None:
    (folder / "images/GQA/1.png").unlink()


def break_parquet(folder: Path, options: list[str]) -> None:
    (folder / "data/own/test-00000-of-00001.parquet").write_bytes(b"broken")


def empty_folder(folder: Path, options: list[str]) -> None:
    (folder / "empty").mkdir()
    options += ["--dataset_name", str(folder / "empty")]


def file_as_output(folder: Path, options: list[str]) -> None:
    (folder / "out").write_text("a file")


def no_model(folder: Path, options: list[str]) -> None:
    (folder / "hand").mkdir()
    options += ["--model_name", str(folder / "hand")]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_image, "no such image"),
        (break_parquet, "cannot read it as parquet"),
        (empty_folder, "no dataset with a test-*.parquet file"),
        (file_as_output, "cannot create it"),
        (no_model, "hand"),
        (change("--subset_name", "nonsense"), "--subset_name nonsense"),
        (change("--dataset_split", "dev"), "no dataset with a dev-*.parquet file"),
        (change("--image_dir", "/no/such/folder"), "--image_dir /no/such/folder: no such folder"),
        (change("--benchmark", "mmeb"), "--benchmark mmeb: use one of auto, folder, MMEB, mini-MMEB"),
        (change("--pooling", "mean"), "use --pooling eos"),
        (change("--num_crops", "0"), "--num_crops 0: must be 1 or more"),
        (
            lambda folder, options: options.extend(["--min_pixels", "9", "--max_pixels", "4"]),
            "--min_pixels 9: must not be more than --max_pixels 4",
        ),
        (
            change("--allow_changed", "prompt_format"),
            "--allow_changed prompt_format: no effect without --prompt_format",
        ),
        (change("--per_device_eval_batch_size", "x"), "invalid int value"),
        (change("--dataloader_num_workers", "-1"), "must be 0 or more"),
        (change("--checkpoint_path", "adapter"), "without --lora: add --lora"),
        (change("--lora", "maybe"), "--lora"),
        (change("--subset", "GQA"), "unknown option --subset; did you mean --subset_name?"),
        (change("--eval_image_dir", "x"), "unknown option --eval_image_dir: use --image_dir"),
        (lambda folder, options: options.append("--lora"), "has no adapter_config.json"),
        (lambda folder, options: options.clear(), "the following arguments are required"),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_code_2(
    tmp_path: Path,
    options: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path, list[str]], None],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(tmp_path, options)
    assert run_program(lambda: mmeb.main(options)) == EXIT_BAD_INPUT
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not (tmp_path / "out").is_dir() or not list((tmp_path / "out").iterdir())
