"""One rank that mines, and is killed in a second run after a few blocks of vectors."""

from __future__ import annotations

import os
import signal
from typing import Any

from data_prep import mine
from vlm2vec.evaluation.vector_store import VectorStore

BLOCKS_BEFORE_DEATH = 2


def main(folder: str, port: str, *options: str) -> None:
    """Writes `<folder>/two_ranks` and begins `<folder>/torn`.

    Args:
        folder: What is written lies in it.
        port: For the second meeting: at the first one's port, a rank could still reach the first rank's old store.
        options: Of the program.
    """
    mine.main([*options, "--output_dir", f"{folder}/two_ranks"])
    os.environ["MASTER_PORT"] = port
    write, written = VectorStore.write_block, 0

    def write_and_die(*arguments: Any) -> None:
        nonlocal written
        write(*arguments)
        written += 1
        if written == BLOCKS_BEFORE_DEATH:
            os.kill(os.getpid(), signal.SIGKILL)

    VectorStore.write_block = write_and_die  # type: ignore[assignment, method-assign]  # the process ends with it
    mine.main([*options, "--output_dir", f"{folder}/torn"])
