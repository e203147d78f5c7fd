"""The nodes of a hostfile: can they be reached as the launcher reaches them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlm2vec.doctor.finding import FAIL, OK, WARN, Finding
from vlm2vec.errors import InputError

_SECONDS = 10
_LINE = re.compile(r"^(?P<name>\S+)\s+slots=(?P<slots>\d+)$")


@dataclass(frozen=True)
class Node:
    """One line of a hostfile."""

    name: str
    slots: int


def read_hostfile(path: Path) -> list[Node]:
    """The nodes, in order.

    Raises:
        InputError: Unreadable, a line that is no node, a node twice, or none at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"--hostfile {path}: {error}") from error
    nodes: list[Node] = []
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        found = _LINE.match(text)
        if found is None or int(found["slots"]) < 1:
            raise InputError(f"--hostfile {path}, line {number}: expected 'NAME slots=GPUS', not {text!r}")
        if any(node.name == found["name"] for node in nodes):
            raise InputError(f"--hostfile {path}, line {number}: {found['name']} stands there twice")
        nodes.append(Node(found["name"], int(found["slots"])))
    if not nodes:
        raise InputError(f"--hostfile {path}: no nodes in it")
    return nodes


def node_findings(path: Path) -> Iterator[Finding]:
    """Each node's name, and a command through ssh; what the launcher needs here."""
    nodes = read_hostfile(path)
    if shutil.which("pdsh") is None:
        yield Finding(WARN, "no pdsh", "apt-get install pdsh; or start every node with its NODE_RANK (no ssh needed)")
    else:
        yield Finding(OK, "pdsh is there")
    for node in nodes:
        yield _reach(node)
    yield own_address(len(nodes))


def _reach(node: Node) -> Finding:
    try:
        address = socket.getaddrinfo(node.name, None)[0][4][0]
    except OSError as error:
        return Finding(FAIL, f"{node.name}: {error}", "put its address into /etc/hosts or the hostfile")
    if shutil.which("ssh") is None:
        return Finding(WARN, f"{node.name} is {address}; no ssh here to try it", "start every node with its NODE_RANK")
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_SECONDS // 2}"]
    command = ["ssh", *options, *shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", "")), node.name, "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Finding(
            FAIL, f"{node.name} ({address}): no answer through ssh in {_SECONDS} s", "is it up, port 22 open?"
        )
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"ssh ended with {done.returncode}"
        return Finding(
            FAIL, f"{node.name} ({address}): {reason}", f"ssh {node.name} must work without a password: ssh-copy-id"
        )
    return Finding(OK, f"{node.name} ({address}), {node.slots} slots: ssh works")


def own_address(num_nodes: int) -> Finding:
    """Ranks tell each other their host name's address, unless an interface is named."""
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if variable in os.environ:
            return Finding(OK, f"{variable}={os.environ[variable]}")
    name = socket.gethostname()
    try:
        address = str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
    except OSError as error:
        return Finding(WARN, f"own name {name}: {error}", "set NETWORK_INTERFACE for launch/multinode.sh, such as eth0")
    if address.startswith("127.") and num_nodes > 1:
        return Finding(
            WARN,
            f"own name {name} is {address}, which other nodes cannot reach",
            "set NETWORK_INTERFACE for launch/multinode.sh, such as eth0",
        )
    return Finding(OK, f"own name {name} is {address}")
