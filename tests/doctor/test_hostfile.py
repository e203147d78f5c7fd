"""Names in a hostfile: accepted as by DeepSpeed and ssh; names that these would misread are refused in one line."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vlm2vec.doctor import hostfile
from vlm2vec.doctor.hostfile import Node, check_port, find_address, main, master_address, read_hostfile
from vlm2vec.errors import InputError


def write(folder: Path, text: str) -> Path:
    path = folder / "hostfile"
    path.write_bytes(text.encode("utf-8"))
    return path


TAKEN = {
    "# two\n\nnode-0 slots=8\nnode-1  slots=4  # smaller\n": {"node-0": 8, "node-1": 4},
    "node-0\tslots=8 \t \r\n  node_1.rack.example. slots=08\r\n": {"node-0": 8, "node_1.rack.example.": 8},
    "user@10.0.0.1 slots=8 max_slots=8\nuser.name@node slots=1#x": {"user@10.0.0.1": 8, "user.name@node": 1},
    "fe80::1%eth0 slots=1\n::2 slots=1\nuser@::3 slots=1": {"fe80::1%eth0": 1, "::2": 1, "user@::3": 1},
}


@pytest.mark.parametrize("text", TAKEN)
def test_names_that_deepspeed_takes(text: str, tmp_path: Path) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    path = write(tmp_path, text)
    assert {node.name: node.slots for node in read_hostfile(path)} == TAKEN[text]
    assert dict(fetch_hostfile(str(path))) == TAKEN[text]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a\n", "line 1: expected 'NAME slots=GPUS'"),
        ("#\na slots=0", "line 2: expected"),
        ("a slots = 8", "line 1: expected"),
        ("a slots=8GPUs", "line 1: expected"),
        ("a:8", "line 1: expected"),
        ("slots=8", "line 1: expected"),
        ("a slots=1\na slots=1\n", "line 2: a is listed twice"),
        ("a slots=1\nuser@a slots=1\n", "line 2: a is listed twice"),
        ("#\n", "no nodes"),
        ("", "no nodes"),
        ("\ufeffa slots=1", "line 1: the file begins with a byte order mark"),
        ("a:22 slots=1", "line 1: a:22: a name must not have a port"),
        ("ssh://user@a:22 slots=1", "line 1: .*a name must not have a port"),
        ("[::1] slots=1", "line 1: .*: write the IPv6 address as ::1"),
        ("[::1]:22 slots=1", "line 1: .*: write the IPv6 address as ::1"),
        ("-oProxyCommand=x slots=1", "line 1: .*no host name"),
        ("node[0-3] slots=1", "line 1: .*no host name"),
        ("a,b slots=1", "line 1: .*no host name"),
        ("@a slots=1", "line 1: .*no host name"),
        ("a@ slots=1", "line 1: .*no host name"),
        ("a;b slots=1", "line 1: .*no host name"),
    ],
)
def test_what_would_be_misread_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        read_hostfile(write(tmp_path, text))


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ssh that knows aliases from `aliases.json` beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ssh"
    program.write_text(
        f'#!/bin/sh\nfor name; do :; done\n/bin/sed -n "s/^$name /hostname /p" {folder / "aliases"}\n', encoding="utf-8"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("PDSH_SSH_ARGS_APPEND", raising=False)
    (folder / "aliases").write_text("alias 127.0.0.7\nuser@alias 127.0.0.8\nodd no-such-name.invalid\n")
    return folder


@pytest.mark.parametrize(
    ("name", "address"),
    [("alias", "127.0.0.7"), ("user@alias", "127.0.0.8"), ("user@127.0.0.1", "127.0.0.1"), ("::1", "::1")],
)
def test_an_address_is_what_ssh_connects_to(name: str, address: str, ssh: Path) -> None:
    assert find_address(Node(name, 1)) == address


def test_an_alias_without_an_address_is_refused(ssh: Path) -> None:
    with pytest.raises(InputError, match=r"odd: no address \(no-such-name\.invalid: .*; odd: "):
        find_address(Node("odd", 1))


def test_ranks_do_not_meet_where_each_node_means_itself(ssh: Path) -> None:
    local, other, alias = Node("root@127.0.0.1", 1), Node("10.0.0.1", 1), Node("alias", 1)
    assert master_address([local], "") == "127.0.0.1"
    assert master_address([local, Node("localhost", 1)], "") == "127.0.0.1"  # two nodes that are one machine
    for first in (local, alias):
        with pytest.raises(InputError, match=r"which 10\.0\.0\.1 cannot reach; set MASTER_ADDR"):
            master_address([first, other], "")
    assert master_address([local, other], "10.0.0.2") == "10.0.0.2"


def test_a_port_in_use_is_refused_where_rank_0_will_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostfile, "_PORT_SECONDS", 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=f"MASTER_PORT {port}: another process"):
            check_port("127.0.0.1", port, is_here=False)
        with pytest.raises(InputError, match=f"MASTER_PORT {port}: another process"):
            check_port("192.0.2.1", port, is_here=True)
        check_port("192.0.2.1", port, is_here=False)  # of another machine
    check_port("127.0.0.1", port, is_here=True)


def test_the_program_prints_the_address_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "user@127.0.0.1 slots=1\n")
    main([str(path), "--node_rank", "0", "--master_port", "65535"])
    assert capsys.readouterr().out == "127.0.0.1\n"
    with pytest.raises(InputError, match="MASTER_PORT 65536"):
        main([str(path), "--master_port", "65536"])
