from __future__ import annotations

from pathlib import Path

import pytest

from trials.rig.hand_made_train import make_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A hand-made MMEB-train with one subset A of ten rows and three images."""
    return make_dataset(tmp_path / "MMEB-train")
