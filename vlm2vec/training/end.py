"""Ends a rank after an error: at once, with the error's exit code, and with one line if the error is expected."""

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

    Skips the interpreter's shutdown: that would wait for loader workers, which ignore SIGTERM, and for collectives that
    other ranks no longer join.
    """
    code = exit_code(error)
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exit_code(error: BaseException) -> int:
    """Prints an error, unless a different rank reports it, and returns its exit code."""
    is_first = is_first_rank()
    if isinstance(error, InputError) or (isinstance(error, KeyboardInterrupt) and is_first):
        return report(error)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, CheckpointError):  # raised on all ranks
        if is_first:
            print(f"error: {error}", file=sys.stderr)
        return 1
    traceback.print_exception(error)
    return 1
