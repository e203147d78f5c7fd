"""A `python` for launch scripts and launchers that forks programs from a process that has imported everything.

A launcher starts a real process, with its arguments and variables in /proc. It waits for the forked process, which has
the same files, folder, variables and network; it passes signals on and ends with the same exit code. If it is killed,
the forked process is killed too. Anything but `[-u] -m MODULE` and `[-u] FILE.py` is run by the real Python, and so is
the rank that the variable REAL_RANK names.
"""

from __future__ import annotations

import atexit
import ctypes
import io
import json
import multiprocessing
import os
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from trials.rig.forked import fork_server

# Written beside the socket; starts in a few hundredths of a second.
_PROGRAM = """#!{python} -IS
import json, os, signal, socket, sys

words = sys.argv[1:]
unbuffered = words[:1] == ["-u"] or "PYTHONUNBUFFERED" in os.environ
rest = words[words[:1] == ["-u"]:]
is_program = rest[:1] == ["-m"] or rest and rest[0].endswith(".py")
if not is_program or os.environ.get("RANK", "none") == os.environ.get("REAL_RANK"):
    os.execv({python!r}, [{python!r}, *words])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, lambda number, _: server.send(bytes([number])))
request = json.dumps([rest, dict(os.environ), os.getcwd(), unbuffered, __file__]).encode()
network = os.open("/proc/self/ns/net", os.O_RDONLY)
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2, network])
server.sendall(request)
code = int(server.recv(8) or -signal.SIGKILL)
if code < 0:
    if code != -signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""
_SECONDS_BETWEEN_LOOKS = 5  # checks whether the parent is gone


@contextmanager
def forked_python() -> Iterator[Path]:
    """The program's path, named `python`; it works until the context ends."""
    with tempfile.TemporaryDirectory(prefix="python") as folder, socket.socket(socket.AF_UNIX) as listening:
        address, program = f"{folder}/socket", Path(folder) / "bin" / "python"
        program.parent.mkdir()
        program.write_text(_PROGRAM.format(python=sys.executable, address=address))
        program.chmod(0o755)
        listening.bind(address)
        listening.listen(64)
        server = fork_server().Process(target=_serve, args=(listening,))
        server.start()
        try:
            yield program
        finally:
            server.kill()
            server.join()


def _serve(listening: socket.socket) -> None:
    """Forks a process for each connection, kills it if the connection ends, and sends its exit code there."""
    parent = os.getppid()
    waiting = selectors.DefaultSelector()
    waiting.register(listening, selectors.EVENT_READ, None)
    while os.getppid() == parent:
        for key, _ in waiting.select(_SECONDS_BETWEEN_LOOKS):
            if key.data is None:
                connection, _ = listening.accept()
                pid = _start(connection, [listening, waiting, *(each.fileobj for each in waiting.get_map().values())])
                waiting.register(connection, selectors.EVENT_READ, (pid, connection))
                waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
                continue
            pid, connection = key.data
            if key.fileobj is connection:
                numbers = connection.recv(16)
                for number in numbers or [signal.SIGKILL]:
                    os.kill(pid, number)
                if not numbers:
                    waiting.unregister(connection)
                continue
            _, status = os.waitpid(pid, 0)
            waiting.unregister(key.fileobj)
            os.close(int(key.fd))
            if connection in waiting.get_map():
                waiting.unregister(connection)
                connection.send(str(os.waitstatus_to_exitcode(status)).encode())
            connection.close()


def _start(connection: socket.socket, others: list[Any]) -> int:
    size, files, _, _ = socket.recv_fds(connection, 4, 4)
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        data += connection.recv(2**16)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for other in (*others, connection):
                os.close(other) if isinstance(other, int) else other.close()
            code = _run(files, *json.loads(data))
        finally:
            os._exit(code)
    for file in files:
        os.close(file)
    return pid


def _run(
    files: list[int], words: list[str], variables: dict[str, str], folder: str, unbuffered: bool, program: str
) -> int:
    """Runs the module or file as `__main__`, with the interpreter's steps around it; returns its exit code."""
    os.setsid()
    network = files.pop()
    if os.fstat(network).st_ino != os.stat("/proc/self/ns/net").st_ino:
        assert ctypes.CDLL(None, use_errno=True).setns(network, 0) == 0, os.strerror(ctypes.get_errno())
    os.close(network)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    multiprocessing.set_start_method("fork", force=True)  # for loader workers, as in a process that was not forked
    # The existing ones expect the kind of file that was there when they were created.
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), write_through=unbuffered)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), errors="backslashreplace", line_buffering=True)
    is_module = words[0] == "-m"
    sys.argv, sys.executable = words[is_module:], program
    name = sys.argv[0]
    sys.path.insert(0, folder if is_module else str(Path(name).resolve().parent))
    sys.modules.pop(name, None)
    code = 0
    try:
        if is_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    except SystemExit as end:
        code = _code_of(end)
    except BaseException as error:
        trace: TracebackType | None = error.__traceback__
        traceback.print_exception(type(error), error, trace)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _code_of(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1
