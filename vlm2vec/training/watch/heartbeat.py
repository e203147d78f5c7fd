"""Never hang: ranks report where they are, and a job that cannot continue ends and names the rank that blocks it.

Collectives have time limits of their own, but they cannot name a rank, cannot tell a stuck rank from one that writes a
checkpoint, and end differently on each backend (an exception on gloo, an abort by a watchdog on NCCL). What is here
needs neither backend nor device: threads, and the store through which the ranks met.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from vlm2vec.errors import EXIT_BAD_INPUT, InputError, report
from vlm2vec.ranks import gather_from_all
from vlm2vec.training.watch.stuck import EXIT_STUCK, GRACE_SECONDS, Mark, Verdict, Witness, Word

_SECONDS_OF_A_TICK = 1.0
# Every rank reads all others' words, so that large jobs do it less often: the first rank's process serves them all.
_RANKS_A_SECOND = 64
# Calls of the store fail at once where its process has died. Where it is only stopped they wait, and torch prints a
# stack each time, so that they wait for long.
_SECONDS_TO_CALL_AGAIN, _SECONDS_TO_CLOSE = 10.0, 5.0
_BEATS_TO_LOOK = 6
# The others still have to read why this rank ends; the first rank's process, which tells them, goes last.
_SECONDS_TO_TELL, _SECONDS_TO_SERVE = 2.0, 4.0
# At the end of a run, and after bad input on one rank: for the others to come to their end too.
_SECONDS_TO_LEAVE = 10.0
_watches = itertools.count()  # the ranks of a job make the same ones: a name in the store for each


class Heartbeat:
    """Watches the progress of a run; within it, a job that makes none ends with `EXIT_STUCK`.

    The main thread makes marks. One thread tells them to the other ranks and reads theirs; as the store may stop
    answering, another one judges. It ends the process by `os._exit`: the main thread is in a collective or a system
    call that no exception reaches, and leaving the interpreter would wait for it.

    Args:
        step_limit: Seconds that a rank may stay at one mark after the first step, and that its process may be silent.
        pause_limit: The same before the first step has ended, and in what may take long: data, checkpoints, scores.
    """

    def __init__(self, step_limit: float, pause_limit: float) -> None:
        self._step_limit, self._pause_limit = step_limit, pause_limit
        self._rank, num_ranks = dist.get_rank(), dist.get_world_size()
        self._steps_begun = 0
        self._is_armed = False
        self._mark = Mark(0, 0, "starting", pause_limit)
        self._end: str | None = None
        self._is_bad_input = False
        places = gather_from_all((socket.gethostname(), os.getpid()), tuple[str, int])
        first = Word(0, self._mark)
        names = [f"rank {rank} on {host} (process {pid})" for rank, (host, pid) in enumerate(places)]
        self._words = [first] * num_ranks
        self._seconds_a_beat = max(_SECONDS_OF_A_TICK, num_ranks / _RANKS_A_SECOND)
        self._witness = Witness(names, self._rank, self._seconds_a_beat)
        self._prefix = f"heartbeat/{next(_watches)}"
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._judge, name="judge", daemon=True)]
        if num_ranks > 1:
            self._store(dist.distributed_c10d._get_default_store()).set(self._key(self._rank), _text(first))
            dist.barrier()  # now there is a word of everyone to read
            self._threads.append(threading.Thread(target=self._talk, name="heartbeat", daemon=True))

    def mark(self, place: str, is_pause: bool = False) -> None:
        """The main thread has come to a place; `is_pause` where it may take long. The ranks make the same marks."""
        limit = self._step_limit if self._is_armed and not is_pause else self._pause_limit
        self._mark = Mark(self._mark.count + 1, self._steps_begun, place, limit)

    def begin_step(self, step: int) -> None:
        """A step begins, counted from 1: the marks that follow are its."""
        self._steps_begun = step

    def end_step(self) -> None:
        """A step has ended; from the first one's end on, `step_limit` counts."""
        self._is_armed = True

    def where(self) -> str:
        """The last mark, in words."""
        return str(self._mark)

    def __enter__(self) -> Heartbeat:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lines = str(error).splitlines() or [""]
        self._is_bad_input = isinstance(error, InputError) or (
            isinstance(error, SystemExit) and error.code == EXIT_BAD_INPUT
        )
        self._end = f"{type(error).__name__}: {lines[0]}" if error is not None else ""
        if isinstance(error, InputError):
            self._report(error)
        if isinstance(error, RuntimeError):
            self._name_the_lost()
        self._closing.set()
        for thread in self._threads:
            thread.join(_SECONDS_TO_CLOSE)
        if error is None or self._is_bad_input:
            self._leave_together()

    def _report(self, error: InputError) -> None:
        """Prints an error, unless another rank has printed the same one."""
        digest = hashlib.sha256(str(error).encode(errors="replace")).hexdigest()
        is_first = True
        if self._witness.others:
            with suppress(RuntimeError):  # the first rank's process, which counts, is gone
                is_first = self._main_store().add(f"{self._prefix}/error/{digest}", 1) == 1
        if is_first:
            report(error)
        error.is_reported = True

    def _leave_together(self) -> None:
        """Waits until every rank has come here, and the first one until the others have left; not for long.

        Collectives break as soon as a process of theirs ends, calls of the store when the first rank's ends, and a
        launcher kills the others: each would add a traceback, or end before it has reported its error.
        """
        if not self._witness.others:
            return
        ended, left = f"{self._prefix}/ended", f"{self._prefix}/left"
        deadline = time.monotonic() + _SECONDS_TO_LEAVE
        with suppress(RuntimeError):
            store = self._main_store()
            store.add(ended, 1)
            while store.add(ended, 0) < len(self._words) and time.monotonic() < deadline:
                time.sleep(_SECONDS_OF_A_TICK / 20)
            if self._rank:
                store.add(left, 1)
            while self._rank == 0 and store.add(left, 0) < len(self._witness.others) and time.monotonic() < deadline:
                time.sleep(_SECONDS_OF_A_TICK / 20)

    def _main_store(self) -> Store:
        """A connection for a thread that is about to end, and does not wait for long."""
        store = self._store(dist.distributed_c10d._get_default_store())
        store.set_timeout(timedelta(seconds=_SECONDS_TO_CLOSE))
        return store

    def _name_the_lost(self) -> None:
        """Collectives fail where another rank has died, and do not say which one."""
        if not self._witness.others or _BEATS_TO_LOOK * self._seconds_a_beat > GRACE_SECONDS:
            return
        lost = None
        for beat in range(_BEATS_TO_LOOK):
            time.sleep(self._seconds_a_beat)
            # The dead say nothing, those who failed say so, most often because of the dead.
            lost = self._witness.silent(2 * self._seconds_a_beat)
            if lost is None and 2 * beat >= _BEATS_TO_LOOK:
                lost = self._witness.failed()
            if lost is not None:
                break
        if lost is not None:
            print(f"{self._witness.names[self._rank]} is about to end, and {lost.text}", file=sys.stderr, flush=True)

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/{rank}"

    def _store(self, store: Any) -> Store:
        """A connection of its own: on a shared one, calls wait for each other."""
        own: Store = store.clone()
        own.set_timeout(timedelta(seconds=self._pause_limit))
        return own

    def _talk(self) -> None:
        """Thread: says and reads words until the run ends."""
        default = dist.distributed_c10d._get_default_store()
        keys = [self._key(rank) for rank in range(len(self._words))]
        store: Store | None = None
        for beat in itertools.count(1):
            is_last = self._closing.wait(self._seconds_a_beat)
            try:
                store = store or self._store(default)
                store.set(keys[self._rank], _text(Word(beat, self._mark, self._end, self._is_bad_input)))
                if is_last:
                    return
                self._words = [Word.from_dict(json.loads(text)) for text in store.multi_get(keys)]
            except (RuntimeError, ValueError):  # torch's store errors are RuntimeErrors
                store = None
                if is_last or self._closing.wait(_SECONDS_TO_CALL_AGAIN):
                    return

    def _judge(self) -> None:
        """Thread: counts for how long each rank has not moved, and ends the process when that is too long."""
        before = time.monotonic()
        for beat in itertools.count(1):
            if self._closing.wait(_SECONDS_OF_A_TICK):
                return
            now = time.monotonic()
            # A process that was stopped has not listened meanwhile: that is not the others' silence.
            seconds, before = min(now - before, 2 * _SECONDS_OF_A_TICK), now
            words = list(self._words)
            words[self._rank] = replace(words[self._rank], beat=beat, mark=self._mark)
            self._witness.hear(words, seconds)
            if self._end is None and self._witness.is_refused():
                self._end = "another rank ended by bad input"
                self._leave_together()
                sys.stdout.flush()
                os._exit(EXIT_BAD_INPUT)
            verdict = self._witness.judge(self._step_limit if self._is_armed else self._pause_limit)
            if verdict is not None and self._end is None:
                self._give_up(verdict)

    def _give_up(self, verdict: Verdict) -> None:
        main = sys._current_frames().get(threading.main_thread().ident or 0)
        if self._rank in verdict.suspects and main is not None:
            print("".join(traceback.format_stack(main)), file=sys.stderr)
        print(f"error: {self._witness.names[self._rank]} gives up: {verdict.text}", file=sys.stderr, flush=True)
        self._end = f"it gave up: {verdict.text}"
        time.sleep(_SECONDS_TO_SERVE if self._rank == 0 else _SECONDS_TO_TELL)
        sys.stdout.flush()
        os._exit(EXIT_STUCK)


def _text(word: Word) -> str:
    return json.dumps(word.as_dict())
