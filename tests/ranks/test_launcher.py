"""What a rank gets from its launcher: environment, port, device."""

from __future__ import annotations

import socket
import threading

import pytest

from vlm2vec.errors import InputError
from vlm2vec.ranks import LAUNCHER_VARIABLES, device_index, is_first_rank, is_launched, wait_for_port

WHOLE = dict(zip(LAUNCHER_VARIABLES, ("0", "0", "2", "127.0.0.1", "29500"), strict=True))


def test_a_separate_process_is_distinguished_from_a_rank() -> None:
    assert is_launched(WHOLE)
    assert is_first_rank(WHOLE)
    assert not is_first_rank({**WHOLE, "RANK": "1"})
    assert is_first_rank({})
    for alone in ({}, {"WORLD_SIZE": "1"}, {"MASTER_ADDR": "a", "MASTER_PORT": "1"}):
        assert not is_launched(alone)


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"WORLD_SIZE": "4"}, "has WORLD_SIZE=4 but not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: start"),
        ({"RANK": "0"}, "has RANK=0 but not LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT: start"),
        ({**WHOLE, "LOCAL_RANK": ""}, "but not LOCAL_RANK: start"),
        ({**WHOLE, "RANK": "2"}, "RANK=2 and WORLD_SIZE=2: ranks count from 0"),
        ({**WHOLE, "WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be a whole number from 1"),
        ({**WHOLE, "MASTER_PORT": "-1"}, "MASTER_PORT=-1: must be a whole number from 1"),
    ],
)
def test_an_incomplete_environment_says_what_is_missing(environment: dict[str, str], text: str) -> None:
    with pytest.raises(InputError) as caught:
        is_launched(environment)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, ""), (socket.AF_INET6, "::")]
)
def test_a_port_in_use_is_one_line_with_the_flag(family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family, dualstack_ipv6=family == socket.AF_INET6) as other:
        environment = {**WHOLE, "MASTER_PORT": str(other.getsockname()[1])}
        with pytest.raises(InputError, match=r"is in use by another program.*--master_port N"):
            wait_for_port(environment, seconds=0)
        wait_for_port({**environment, "RANK": "1"}, seconds=0)  # listens nowhere
        wait_for_port({**environment, "TORCHELASTIC_USE_AGENT_STORE": "True"}, seconds=0)
        threading.Timer(0.3, other.close).start()  # the ranks of a killed job end a moment later
        wait_for_port(environment, seconds=120)
    with pytest.raises(InputError, match="port 70000 cannot be used"):
        wait_for_port({**WHOLE, "MASTER_PORT": "70000"}, seconds=0)


def test_the_device_of_a_rank() -> None:
    environment = {"LOCAL_RANK": "3"}
    assert device_index(environment, 8) == 3
    assert environment == {"LOCAL_RANK": "3"}
    with pytest.raises(InputError, match="LOCAL_RANK=3, but this process sees 2 devices"):
        device_index(environment, 2)
    # SLURM with one GPU visible a task; DeepSpeed takes the number from the environment.
    assert device_index(environment, 1) == 0
    assert environment == {"LOCAL_RANK": "0"}
