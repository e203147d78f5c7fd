"""One rank that scores collections, and is killed while ranking in a second run."""

from __future__ import annotations

import os
import signal
from typing import Any

from eval import retrieval
from vlm2vec.evaluation.retrieval import nearest, ranking

QUERY_BLOCK = 4


def main(folder: str, port: str, *options: str) -> None:
    """Writes `<folder>/whole` and `<folder>/torn`.

    Args:
        folder: What is written.
        port: For the second meeting of the ranks.
        options: Of the scoring program.
    """
    nearest.QUERY_BLOCK = QUERY_BLOCK
    retrieval.main([*options, "--encode_output_path", f"{folder}/whole"])
    os.environ["MASTER_PORT"] = port
    write = ranking.RankedBlocks._write

    def write_and_die(*arguments: Any) -> None:
        write(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    ranking.RankedBlocks._write = write_and_die  # type: ignore[assignment, method-assign]  # the process ends with it
    retrieval.main([*options, "--encode_output_path", f"{folder}/torn"])
