"""Runs independent tasks in worker processes that never outlive the program."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from vlm2vec.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], num_workers: int
) -> Iterator[tuple[Task, Result]]:
    """Runs all tasks and yields each with its result, in the order in which they finish.

    Args:
        function: Called with one task; must be importable by name.
        tasks: The tasks.
        num_workers: Number of worker processes; 0 runs the tasks in this process.

    Raises:
        InputError: A worker died, or `function` raised it; tasks that have not started are then dropped.
    """
    if num_workers == 0 or not tasks:
        for task in tasks:
            yield task, function(task)
        return
    # Forked workers inherit the output folder's lock, so it is released only when the last of them has ended.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(num_workers, len(tasks)), context, _prepare_worker) as pool:
        try:
            # `submit` raises too, if a worker dies before the last task is submitted.
            futures = {pool.submit(function, task): task for task in tasks}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process died (killed, out of memory?); run the same command again, with fewer --num_workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    gc.freeze()  # the garbage collector need not scan the parent's objects
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent ends: a killed parent cannot stop its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
