"""One rank that scores a model, then one with a damaged image, and is killed in a third run."""

from __future__ import annotations

import os
import signal
from typing import Any

from eval import mmeb
from vlm2vec.errors import InputError
from vlm2vec.evaluation.store import EvalStore

BLOCKS_BEFORE_DEATH = 2


def main(folder: str, broken_images: str, ports: str, *options: str) -> None:
    """Writes `<folder>/whole`, `<folder>/broken` and `<folder>/torn`; the ranks meet anew for each.

    Args:
        folder, broken_images: What is written, and images of which one is damaged.
        ports: For the second and the third meeting: at the first one's port, a rank could still reach the first rank's
            old store, and lose it.
        options: Of the scoring program.
    """
    second_port, third_port = ports.split(",")
    mmeb.main([*options, "--encode_output_path", f"{folder}/whole"])
    os.environ["MASTER_PORT"] = second_port
    try:
        mmeb.main([*options, "--image_dir", broken_images, "--encode_output_path", f"{folder}/broken"])
    except InputError as error:
        print(f"refused: {error}", flush=True)
    except SystemExit as silent:
        print(f"left with {silent.code}", flush=True)  # before the kill
    write, written = EvalStore.write_block, 0

    def write_and_die(*arguments: Any) -> None:
        nonlocal written
        write(*arguments)
        written += 1
        if written == BLOCKS_BEFORE_DEATH:
            os.kill(os.getpid(), signal.SIGKILL)

    EvalStore.write_block = write_and_die  # type: ignore[assignment, method-assign]  # the process ends with it
    os.environ["MASTER_PORT"] = third_port
    mmeb.main([*options, "--encode_output_path", f"{folder}/torn"])
