"""How a rank ends after an error: at once, with the error's exit code and at most one line where that is enough."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from typing import NoReturn

from vlm2vec.errors import EXIT_INTERRUPTED, InputError, report
from vlm2vec.ranks import is_first_rank
from vlm2vec.training.checkpoints.writer import CheckpointError


def end_process(error: BaseException) -> NoReturn:
    """Reports an error and ends this process.

    Without the interpreter's end: that waits for loader workers, which ignore SIGTERM, and for collectives that nobody
    joins any more.
    """
    code = exit_code(error)
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exit_code(error: BaseException) -> int:
    """The exit code of an error, which is printed, if it is not another rank's to report."""
    is_first = is_first_rank()
    if isinstance(error, InputError) or (isinstance(error, KeyboardInterrupt) and is_first):
        return report(error)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, CheckpointError):  # raised on all ranks alike
        if is_first:
            print(f"error: {error}", file=sys.stderr)
        return 1
    traceback.print_exception(error)
    return 1
