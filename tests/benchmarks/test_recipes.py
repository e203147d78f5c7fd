"""The benchmark of recipes: programs and flags, results that are kept, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import demo_seeds, miniature_runs, recipes
from vlm2vec.errors import InputError
from vlm2vec.mmeb import META_TASKS
from vlm2vec.training.flags.run import parse_arguments


def test_a_finished_run_is_kept_and_an_unfinished_one_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[str, ...]] = []

    def program(*command: str) -> None:
        commands.append(command)
        if command[0] == "vlm2vec.train":
            Path(command[command.index("--output_dir") + 1]).mkdir()
            arguments = parse_arguments(command[1:])  # no flag is refused
            assert arguments.training.max_steps == 40
        elif command[0] == "vlm2vec.export":
            Path(command[2]).mkdir()
        elif command[0] == "data_prep.mine":
            mini.mined.mkdir()
            (mini.mined / "mined.json").touch()
        elif len(commands) < 5:
            raise InputError("killed")
        else:
            scores = Path(command[command.index("--encode_output_path") + 1])
            scores.mkdir()
            tasks = {name: {"acc": 0.25} for name in META_TASKS}
            found = {"overall": {"acc": 0.5}, "IND": {"acc": 0.1}, "meta_tasks": tasks}
            (scores / "scores.json").write_text(json.dumps(found))

    monkeypatch.setattr(recipes, "program", program)
    monkeypatch.setattr(miniature_runs, "program", program)
    mini = recipes.Miniature(tmp_path, steps=40)
    mini.folder.mkdir()
    variant = next(name for name in recipes.VARIANTS if "mined clusters" in name)
    with pytest.raises(InputError, match="killed"):
        mini.result(variant, 1)
    expected = {"overall": 50.0, **dict.fromkeys(META_TASKS, 25.0)}
    for _ in range(2):
        assert mini.result(variant, 1) == expected
    programs = ["vlm2vec.train", "vlm2vec.export", "eval.mmeb"]
    assert [command[0] for command in commands] == 2 * programs
    train = commands[0]
    assert train[train.index("--mined") + 1] == str(tmp_path / "recipes" / "mined")
    assert train[train.index("--seed") + 1] == "1"
    for name in recipes.VARIANTS:
        mini.result(name, 2)
    for _ in range(2):
        mini.mine()
    assert [command[0] for command in commands[6:]] == len(recipes.VARIANTS) * programs + ["data_prep.mine"]
    assert {path.suffix for path in mini.folder.iterdir()} == {".json", ""}
    assert len(list(mini.folder.glob("*.json"))) == 1 + len(recipes.VARIANTS)


def test_the_table_compares_seed_by_seed() -> None:
    def scores(*overall: float) -> list[dict[str, float]]:
        return [{"overall": each, **dict.fromkeys(META_TASKS, 10.0)} for each in overall]

    lines = list(recipes.table({recipes.BASE: scores(50, 60, 55), "other": scores(52, 59, 60)}))
    assert lines[2].startswith("| base recipe | **55.0** | 5.0 | 50.0 to 60.0 |  | 10.0 |")
    assert lines[3].startswith("| other | **57.0** | 4.4 | 52.0 to 60.0 | +2.0 (+2.0, -1.0, +5.0) | 10.0 |")
    assert {line.count("|") for line in lines} == {len(META_TASKS) + 6}


def test_the_demos_seeds_are_families_with_mean_and_spread() -> None:
    seeds = {"a family": [{"overall": each} for each in (70.0, 72.0, 74.0)]}
    lines = list(demo_seeds.table({"a family": {"overall": 7.25}}, seeds))
    assert lines[2] == "| a family | 7.2 | **72.0** | 2.0 | 70.0, 72.0, 74.0 |"


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("3", "3")])
def test_programs_have_one_thread_unless_told_otherwise(
    given: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    (tmp_path / "shows_threads.py").write_text("import os, sys; sys.exit('threads: ' + os.environ['OMP_NUM_THREADS'])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match=rf"threads: {expected}$"):
        miniature_runs.program("shows_threads")
