"""The restart loop of docs/monitoring.md restarts a run only where a restart can help."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from trials.rig.launcher import REPOSITORY


@pytest.mark.parametrize(
    ("codes", "starts"),
    [([75, 76, 247, 137, 0, 9], 5), ([2, 0], 1), ([75, 1, 0], 2), ([0, 0], 1)],
)
def test_the_loop_ends_where_a_restart_cannot_help(codes: list[int], starts: int, tmp_path: Path) -> None:
    [loop] = re.findall(r"`(until deepspeed \.\.\.; do .*; done)`", (REPOSITORY / "docs/monitoring.md").read_text())
    calls = tmp_path / "calls"
    script = f"""
        codes=({" ".join(map(str, codes))})
        deepspeed() {{ echo >> {calls}; return "${{codes[$(wc -l < {calls}) - 1]}}"; }}
        {loop}
    """
    subprocess.run(["bash", "-c", script], check=True, timeout=60)
    assert len(calls.read_text().splitlines()) == starts
