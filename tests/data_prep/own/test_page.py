"""The commands of docs/own_data.md run and do what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.data_prep.own import page
from trials.rig.forked import run_forked
from trials.rig.launcher import REPOSITORY

PAGE = REPOSITORY / "docs/own_data.md"


def test_the_commands_of_the_page_train_search_and_score(mini_model_dir: Path, tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    scripts = re.findall(r"^`(\w+\.py)`.*?^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in scripts] == ["draw.py", "search.py", "heldout.py"]
    for name, content in scripts:
        (tmp_path / name).write_text(content)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/untrained").symlink_to(mini_model_dir)
    (tmp_path / "ds_configs").symlink_to(REPOSITORY / "ds_configs")
    of_the_demo, opening, *blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    commands = "".join(blocks).replace("\\\n", "").splitlines()
    assert "demo/mini" in of_the_demo
    assert opening.splitlines() == commands[1:2]  # "your own pairs"
    assert len(commands) == 7
    (shown,) = run_forked(1, page.main, [tmp_path, commands], tmp_path)
    assert "a green 7: images/green_7.png\na gold 1: images/gold_1.png\n" in shown
    scores = json.loads((tmp_path / "scores/pairs_score.json").read_text())
    assert scores["acc"] > 0.9
