"""One rank that scores a model, then one with a damaged picture, and is killed in the middle of a third run."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from eval import mmeb
from vlm2vec.errors import InputError
from vlm2vec.evaluation.store import EvalStore

BLOCKS_BEFORE_DEATH = 2


def main(folder: str, broken_images: str, *options: str) -> None:
    """Writes `<folder>/whole`, `<folder>/broken` and `<folder>/torn`."""
    mmeb.main([*options, "--encode_output_path", f"{folder}/whole"])
    try:
        mmeb.main([*options, "--image_dir", broken_images, "--encode_output_path", f"{folder}/broken"])
    except InputError as error:
        print(f"refused: {error}")
    except SystemExit as silent:
        print(f"left with {silent.code}")
    write, written = EvalStore.write_block, 0

    def write_and_die(*arguments: Any) -> None:
        nonlocal written
        write(*arguments)
        written += 1
        if written == BLOCKS_BEFORE_DEATH:
            os.kill(os.getpid(), signal.SIGKILL)

    EvalStore.write_block = write_and_die  # type: ignore[assignment, method-assign]  # the process ends with it
    mmeb.main([*options, "--encode_output_path", f"{folder}/torn"])


if __name__ == "__main__":
    main(*sys.argv[1:])
