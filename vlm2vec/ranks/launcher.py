"""What a launcher gives a rank: environment variables, the port where ranks meet, the device. Needs no torch."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping

from vlm2vec.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, InputError, run_program

# What every launcher sets (torchrun, deepspeed, the scripts in launch/).
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# The ranks of a killed job may keep their port for a moment.
SECONDS_FOR_THE_PORT = 15.0


def is_first_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the first rank or a single process; may be called before the ranks have met."""
    return environment.get("RANK", "0") == "0"


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process as a rank; False for a single process.

    Raises:
        InputError: The launcher's variables are incomplete or invalid; the message names them.
    """
    if "RANK" not in environment and environment.get("WORLD_SIZE", "1") == "1":
        return False
    missing = [name for name in LAUNCHER_VARIABLES if not environment.get(name)]
    if missing:
        there = [f"{name}={environment[name]}" for name in LAUNCHER_VARIABLES if environment.get(name)]
        raise InputError(
            f"the environment has {', '.join(there)} but not {', '.join(missing)}: start the ranks with deepspeed, "
            "torchrun or launch/*.sh, or unset the former for a single process"
        )
    for name, least in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("MASTER_PORT", 1)):
        if not environment[name].isdecimal() or int(environment[name]) < least:
            raise InputError(f"the environment has {name}={environment[name]}: must be a whole number from {least}")
    if int(environment["RANK"]) >= int(environment["WORLD_SIZE"]):
        raise InputError(
            f"the environment has RANK={environment['RANK']} and WORLD_SIZE={environment['WORLD_SIZE']}: ranks count "
            "from 0 to WORLD_SIZE - 1"
        )
    return True


def wait_for_port(environment: Mapping[str, str] = os.environ, seconds: float = SECONDS_FOR_THE_PORT) -> None:
    """Waits on the first rank until MASTER_PORT is free.

    Raises:
        InputError: A different program listens there, or the port cannot be used.
    """
    # Under torchrun, its agent listens and ranks only connect.
    if environment["RANK"] != "0" or environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    port, deadline = int(environment["MASTER_PORT"]), time.monotonic() + seconds
    while True:
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", port))
                probe.listen()
            return
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                if time.monotonic() < deadline:
                    time.sleep(0.2)
                    continue
                raise port_in_use(port) from error
            raise InputError(f"port {port} cannot be used ({error}); choose a different --master_port") from error


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_in_use(port: int) -> InputError:
    """Error for a port that a different program uses."""
    return InputError(
        f"port {port} is in use by another program (another training on this machine?): give the launcher a different "
        "one, deepspeed --master_port N or MASTER_PORT=N for launch/*.sh"
    )


def ranks_of_node(environment: Mapping[str, str]) -> int | None:
    """Number of ranks on this machine; None if the launcher does not set it."""
    # torchrun's name and DeepSpeed's.
    given = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE")
    return int(given) if given else None


def device_index(environment: MutableMapping[str, str], num_visible: int) -> int:
    """Index of this rank's device among those that it sees; also sets LOCAL_RANK to it.

    If each rank sees only one device (SLURM's --gpus-per-task, CUDA_VISIBLE_DEVICES per rank), it is device 0, whatever
    the local rank. DeepSpeed also uses LOCAL_RANK as the device.

    Raises:
        InputError: There are fewer devices than ranks.
    """
    local_rank = int(environment.get("LOCAL_RANK", "0"))
    if num_visible == 1:
        local_rank = 0
    if local_rank >= num_visible:
        raise InputError(
            f"LOCAL_RANK={local_rank}, but this process sees {num_visible} devices: start at most one rank a device"
        )
    environment["LOCAL_RANK"] = str(local_rank)
    return local_rank


def run_ranks_program(main: Callable[[], None]) -> int:
    """Runs a program with one process or several ranks; see `run_program`.

    Every rank parses the same command line; the first one reports what is wrong with it, the others end silently.

    Returns:
        The exit code.
    """
    if is_first_rank():
        return run_program(main)
    try:
        main()
    except InputError:
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0
