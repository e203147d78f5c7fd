"""The ranks of an evaluation: one process, or as many as a launcher started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from vlm2vec.errors import EXIT_BAD_INPUT, InputError
from vlm2vec.rank_messages import gather_from_all, send_from_first
from vlm2vec.ranks import is_launched, wait_for_port

Result = TypeVar("Result")
# Ranks meet only between phases, and the first one may read for long while the others wait; the launcher sees a rank
# that dies.
_TIMEOUT = timedelta(days=1)


class Ranks:
    """This process among its ranks; on one process nothing waits for anything.

    Attributes:
        rank: this process, from 0.
        size: how many there are.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.size = dist.get_world_size() if dist.is_initialized() else 1

    @classmethod
    def join(cls) -> Ranks:
        """Meets the others that `deepspeed` or `torchrun` started, by the environment that they set.

        Only small messages travel, on the host: the backend is gloo on every device.

        Raises:
            InputError: the launcher's variables are incomplete, or the port is in use.
        """
        if is_launched() and int(os.environ["WORLD_SIZE"]) > 1:
            wait_for_port()
            dist.init_process_group("gloo", timeout=_TIMEOUT)
        return cls()

    def leave(self) -> None:
        """Ends the group."""
        if self.size > 1:
            dist.destroy_process_group()

    def on_first(self, work: Callable[[], Result], kind: Any = Any) -> Result:
        """Rank 0 does the work, all get its result: of type `kind`, or made of JSON's types (`vlm2vec.rank_messages`).

        Raises:
            InputError: on rank 0 what the work raised; the other ranks leave with its exit code and no word.
        """
        result: Result | None = None
        failure: InputError | None = None
        if self.rank == 0:
            try:
                result = work()
            except InputError as error:
                failure = error
        self.agree(failure)
        return send_from_first(result, kind) if self.size > 1 else result  # type: ignore[return-value]

    def agree(self, failure: InputError | None) -> None:
        """All ranks go on, or none; waits for all of them.

        Raises:
            InputError: on rank 0 the first rank's failure; the other ranks leave with its exit code and no word.
        """
        failures = gather_from_all(str(failure) if failure else None, str | None)
        first = next((each for each in failures if each), None)
        if first is None:
            return
        if self.rank == 0:
            raise InputError(first) from failure
        sys.exit(EXIT_BAD_INPUT)
