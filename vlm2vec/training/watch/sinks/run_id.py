"""The name under which trackers know a run: kept in its folder, so that a resume continues the same curves."""

from __future__ import annotations

import secrets
from pathlib import Path

from vlm2vec.files import committed

ID_FILE = "tracker_id"


def run_id(output_dir: Path, first_step: int) -> str:
    """The run's id: the one in its folder if it resumes there, else a new one, which is written there.

    A run that begins at step 0 is a new run, although an earlier start of it may have been killed before its first
    checkpoint: what that one reported stays as it is.

    Args:
        output_dir: The run's folder.
        first_step: Steps done before this start.
    """
    path = output_dir / ID_FILE
    if first_step and path.exists() and (found := path.read_text(encoding="utf-8").strip()).isalnum():
        return found
    made = secrets.token_hex(4)
    with committed(path) as temporary:
        temporary.write_text(f"{made}\n", encoding="utf-8")
    return made
