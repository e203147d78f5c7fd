"""Loader workers end with their rank, however it ends, and release its port."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import psutil
import torch.utils.data

from vlm2vec.batches.worker import end_workers, process_loader

SECONDS = 600
KEPT: list[Iterator[int]] = []


class Pids(torch.utils.data.Dataset[int]):
    """The worker's process, then one item that never comes."""

    def __getitem__(self, index: int) -> int:
        if index:
            time.sleep(10 * SECONDS)
        return os.getpid()


def rank(told: Connection) -> None:
    """Listens as rank 0 does at MASTER_PORT, and loads."""
    multiprocessing.set_start_method("fork", force=True)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        items = iter(process_loader(Pids(), num_workers=1, sampler=[0, 1]))
        told.send((int(next(items)), listening.getsockname()[1]))
        next(items)


def test_workers_of_a_killed_rank_end_and_its_port_is_free_at_once() -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=rank, args=(theirs,))
    process.start()
    assert ours.poll(SECONDS)
    worker, port = ours.recv()
    assert process.pid is not None
    # A signal to the process group of a rank asks it to save: its workers continue.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(worker, number)
    for listener in psutil.Process(worker).net_connections("tcp"):
        assert listener.status != psutil.CONN_LISTEN  # closed in the worker, whatever the rank does
    process.kill()
    process.join()
    socket.create_server(("127.0.0.1", port)).close()
    deadline = time.monotonic() + SECONDS
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kept_rank(told: Connection) -> None:
    """Ends in order, while something keeps the iterator: a cycle, or here a list."""
    multiprocessing.set_start_method("fork", force=True)
    KEPT.append(iter(process_loader(Pids(), num_workers=1, sampler=[0, 1])))
    told.send(int(next(KEPT[0])))


def test_a_rank_that_ends_in_order_does_not_wait_for_workers_that_are_left() -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=kept_rank, args=(theirs,))
    process.start()
    assert ours.poll(SECONDS)
    worker = ours.recv()
    process.join(SECONDS)
    code = process.exitcode
    process.kill()
    assert code == 0
    assert not psutil.pid_exists(worker)


def test_workers_of_an_iterator_that_is_kept_can_be_ended() -> None:
    items = iter(process_loader(Pids(), num_workers=1, sampler=[0]))
    worker = int(next(items))
    assert psutil.pid_exists(worker)
    end_workers(items)
    end_workers(items)
    end_workers(iter(process_loader(Pids(), num_workers=0, sampler=[0])))
    assert not psutil.pid_exists(worker)
