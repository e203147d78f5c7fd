"""Stopping a run by signals, and by a second Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

import pytest

from vlm2vec.errors import EXIT_INTERRUPTED, run_program
from vlm2vec.training import stop
from vlm2vec.training.stop import SIGNALS, StopRequest

SECONDS = 600


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_ask_and_the_handlers_before_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopRequest() as request:
        assert not request.requested
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # of one Ctrl-C, passed on by a launcher
        assert request.requested
        assert request.number == number
    assert [signal.getsignal(each) for each in SIGNALS] == before


def stuck(mutex_name: str, ready: Connection) -> None:
    """Waits in C for what never comes, as in a collective whose other ranks are gone: no Python handler runs there."""
    import ctypes

    stop.SECONDS_OF_ONE_CTRL_C = 0.0
    os.dup2(ready.fileno(), 2)
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    with StopRequest():
        ready.send_bytes(b"ready")
        for _ in range(2):
            library[mutex_name](mutex)


def test_a_second_ctrl_c_ends_a_process_that_is_stuck_in_a_collective() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=stuck, args=("pthread_mutex_lock", theirs))
    process.start()
    try:
        assert ours.poll(SECONDS)
        assert ours.recv_bytes() == b"ready"
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        assert ours.poll(SECONDS)  # the line that says what a second one does
        assert b"a second one ends it" in os.read(ours.fileno(), 1000)
        os.kill(process.pid, signal.SIGINT)
        process.join(SECONDS)
        assert process.exitcode == EXIT_INTERRUPTED
    finally:
        process.kill()


def test_programs_end_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    # A shell starts what runs in its background with SIGINT ignored; Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_program(interrupted) == EXIT_INTERRUPTED == 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"
