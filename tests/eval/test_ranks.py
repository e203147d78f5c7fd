"""The scoring program writes the same files bit for bit on any number of ranks and after a kill."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep.mini_mmeb import EVAL_FOLDER
from eval import mmeb
from eval.invocation import CALLS_FILE, read_invocations
from tests.eval import dying_worker
from trials.rig.forked import ended, run_ranks, start_forked
from trials.rig.launcher import free_port
from vlm2vec.evaluation.store import EvalStore

SIGKILL_EXIT = -9


@pytest.fixture(scope="module")
def options(mini_mmeb_dir: Path, mini_model_dir: Path) -> list[str]:
    data = mini_mmeb_dir / EVAL_FOLDER
    return [
        *("--model_name", str(mini_model_dir), "--dataset_name", str(data), "--image_dir", str(data / "images")),
        *("--subset_name", "Digits-10", "Photos", "PairVQA", "--batch_tokens", "64", "--dataloader_num_workers", "0"),
    ]


@pytest.fixture(scope="module")
def one_rank(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_rank") / "scores"
    mmeb.main([*options, "--encode_output_path", str(folder)])
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """All files but the one that says when and by how many ranks they were made."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name != CALLS_FILE}


def to_encode(output: str) -> tuple[int, int]:
    """Distinct items, and those still to be encoded."""
    found = re.search(r"([\d,]+) unique items, ([\d,]+) of them to encode", output)
    assert found
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))


def test_1_2_and_4_ranks_give_the_same_files_and_a_killed_run_is_taken_up(
    options: list[str], one_rank: Path, mini_mmeb_dir: Path, tmp_path: Path
) -> None:
    """Two ranks score once, meet a damaged image, are killed after 2 blocks each; four ranks take that run up."""
    images = tmp_path / "images"
    shutil.copytree(mini_mmeb_dir / EVAL_FOLDER / "images", images)
    damaged = sorted((images / "Photos").glob("*.jpg"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-200])
    worker = [str(tmp_path), str(images), f"{free_port()},{free_port()}", *options]
    codes = ended(start_forked(2, dying_worker.main, worker, tmp_path))
    outputs = [(tmp_path / f"rank{rank}.log").read_text(errors="replace") for rank in range(2)]
    assert codes == [SIGKILL_EXIT] * 2, outputs[0]
    assert files_of(tmp_path / "whole") == files_of(one_rank)
    assert [call.num_ranks for folder in (tmp_path / "whole", one_rank) for call in read_invocations(folder)] == [2, 1]
    assert re.search(rf"refused: .* row \d+: .*{damaged.name}: damaged or truncated", outputs[0])
    assert "left with 2" in outputs[1]
    assert not (tmp_path / "broken/scores.json").exists()
    torn = tmp_path / "torn"
    assert not (torn / "scores.json").exists()
    assert len([name for name in files_of(torn) if re.search(r"blocks/block-\d+\.npy$", name)]) == 4
    # `--local_rank` as the deepspeed launcher gives it.
    command = ["-m", "eval.mmeb", *options, "--encode_output_path", str(torn), "--local_rank", "0"]
    logs = tmp_path / "resumed"
    logs.mkdir()
    resumed = run_ranks(4, command, logs)
    items, left = to_encode(resumed[0])
    assert 0 < left < items
    assert [(call.num_ranks, call.num_encoded) for call in read_invocations(torn)] == [(4, left)]
    assert files_of(torn) == files_of(one_rank)


@pytest.mark.parametrize("place", ["write_block", "assemble", "write_predictions"])
def test_whatever_is_finished_survives(
    place: str, options: list[str], one_rank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends at the third call of each step that writes; what was written before is not made again."""
    torn = tmp_path / "torn"
    command = [*options, "--encode_output_path", str(torn)]
    original, calls = getattr(EvalStore, place), 0

    def end(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (1 if place == "assemble" else 3):
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(EvalStore, place, end)
    with pytest.raises(KeyboardInterrupt):
        mmeb.main(command)
    assert not (torn / "scores.json").exists()
    made: list[int] = []
    monkeypatch.setattr(EvalStore, place, original)
    if place != "assemble":
        monkeypatch.setattr(EvalStore, place, lambda *arguments: (made.append(arguments[1]), original(*arguments)))
    mmeb.main(command)
    assert made[:1] == ([] if place == "assemble" else [2])
    assert files_of(torn) == files_of(one_rank)
