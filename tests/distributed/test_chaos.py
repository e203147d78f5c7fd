"""Two kills, one of them while a checkpoint is being written: a sample of `make chaos`."""

from __future__ import annotations

from pathlib import Path

from trials.chaos import ANY_TIME, IN_SAVE, Chaos, add_dropout


def test_a_killed_run_ends_as_if_it_had_not_been(mini_model_dir: Path, mini_shards_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in mini_model_dir.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    add_dropout(model)
    # With this seed the first kill waits for the third step, so for the save after the fourth.
    trial = Chaos(model, mini_shards_dir, tmp_path, seed=7).trial("zero2-lora", 0, [IN_SAVE, ANY_TIME])
    assert trial.kills == 2
    assert trial.is_exact, trial
