"""Every ZeRO key allowed in the engine file trains with the gradient of one graph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.workers.engine_keys import SETTINGS
from trials.exactness_grid import TOLERANCE
from trials.rig.forked import run_ranks
from vlm2vec.training.flags.engine_file import ACCEPTED_KEYS

pytestmark = pytest.mark.numeric


def test_every_accepted_key_is_tried() -> None:
    for stage, keys in ACCEPTED_KEYS.items():
        tried = {key for settings in SETTINGS if settings["stage"] == stage for key in settings} - {"stage"}
        assert tried == keys


def test_every_setting_gives_the_gradient_of_one_graph(tmp_path: Path) -> None:
    run_ranks(3, ["-m", "tests.distributed.workers.engine_keys", str(tmp_path)], tmp_path)
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert len(errors) == len(SETTINGS)
    assert [(each, error) for each, error in zip(SETTINGS, errors, strict=True) if not error <= TOLERANCE] == []
