"""Parses and checks a hostfile: node names as DeepSpeed and ssh take them, and the address where ranks meet.

    python -m vlm2vec.doctor.hostfile HOSTFILE [--node_rank N] [--master_addr NAME] [--master_port PORT]

Prints that address, for launch/multinode.sh. If ranks could not meet, or a node does not answer through ssh, it ends
at once with one line: a rank would retry a name that does not exist for half an hour.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser

# Limits for connecting and for the whole command: a login shell on a busy shared file system takes long.
_CONNECT_SECONDS, _SSH_SECONDS = 10, 30
# Processes of a run that was killed a moment ago may still hold its port.
_PORT_SECONDS = 10
# DeepSpeed's rule (launcher/runner.py, `_parse_hostfile`); it ignores what follows the number.
_LINE = re.compile(r"^(?P<name>\S+)\s+slots=(?P<slots>\d+)(?=$|\s|#)")
_USER = re.compile(r"^[\w.+@\\-]+$")
_OWN_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
_HOST = re.compile(r"^\w(?:[\w.-]*\w)?\.?$")


@dataclass(frozen=True)
class Node:
    """One line of a hostfile.

    Attributes:
        name: What ssh takes: a host name, an address or an alias of ~/.ssh/config, with or without `USER@`.
        slots: Number of GPUs; one rank runs on each.
    """

    name: str
    slots: int

    @property
    def host(self) -> str:
        """The name without a user."""
        return self.name.rpartition("@")[2]


def read_hostfile(path: Path) -> list[Node]:
    """Reads the nodes, in the file's order.

    Raises:
        InputError: The file is unreadable or names no node, a line is not a node, or a node occurs twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"hostfile {path}: {error}") from error
    nodes: list[Node] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            node = _parse_line(text)
        except ValueError as error:
            raise InputError(f"hostfile {path}, line {number}: {error}") from error
        if any(other.host == node.host for other in nodes):
            raise InputError(f"hostfile {path}, line {number}: {node.host} is listed twice")
        nodes.append(node)
    if not nodes:
        raise InputError(f"hostfile {path}: lists no nodes")
    return nodes


def _parse_line(text: str) -> Node:
    if text.startswith("\ufeff"):
        raise ValueError("the file begins with a byte order mark; save it as UTF-8 without one")
    found = _LINE.match(text)
    if found is None or int(found["slots"]) < 1:
        raise ValueError(f"expected 'NAME slots=GPUS', such as 'node-0 slots=8', not {text!r}")
    node = Node(found["name"], int(found["slots"]))
    user, at, host = node.name.rpartition("@")
    if (at and not _USER.match(user)) or not _is_host(host):
        place = host.removeprefix("[").partition("]")[0]
        if _is_address(place):
            raise ValueError(
                f"{node.name}: write the IPv6 address as {place}, without brackets and port, as ssh takes it"
            )
        if re.search(r":\d+$", node.name):
            raise ValueError(f"{node.name}: a name must not have a port; set 'Port' under 'Host' in ~/.ssh/config")
        raise ValueError(f"{node.name!r} is no host name, address or USER@HOST")
    return node


def _is_host(text: str) -> bool:
    return bool(_HOST.match(text)) or _is_address(text)


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def find_address(node: Node) -> str:
    """Finds the name or address of a node that ranks can use.

    ssh resolves aliases of its configuration, ranks do not: they get the alias's `HostName`. That name is not resolved
    to a number, because nodes may know each other by different addresses.

    Raises:
        InputError: Neither `HostName` nor the name itself resolves to an address here.
    """
    candidates = list(dict.fromkeys([_ssh_host_name(node) or node.host, node.host]))
    errors = []
    for candidate in candidates:
        try:
            resolve(candidate)
        except OSError as error:
            errors.append(f"{candidate}: {error.strerror or error}")
        else:
            return candidate
    raise InputError(f"{node.name}: no address ({'; '.join(errors)})")


def resolve(name: str) -> str:
    """The first numeric address of a name.

    Raises:
        OSError: It has no address.
    """
    try:
        return str(socket.getaddrinfo(name, None)[0][4][0])
    except UnicodeError as error:  # an empty label, or one of more than 63 characters
        raise OSError(f"no host name: {error}") from error


def _ssh_words(node: Node, *options: str) -> list[str]:
    return ["ssh", *options, *shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", "")), node.name]


def _ssh_host_name(node: Node) -> str | None:
    """The node's `HostName` in ssh's configuration; None without ssh."""
    if shutil.which("ssh") is None:
        return None
    try:
        done = subprocess.run(
            _ssh_words(node, "-G"), capture_output=True, text=True, timeout=_SSH_SECONDS, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"^hostname (\S+)$", done.stdout, re.MULTILINE)
    return found[1] if found else None


def ssh_problem(node: Node) -> str | None:
    """Why a command does not run on a node through ssh without a password; None if it does."""
    command = [*_ssh_words(node, "-n", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"), "true"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SSH_SECONDS, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return f"no answer through ssh in {_SSH_SECONDS} s"
    except OSError as error:
        return f"ssh cannot be started ({error.strerror})"
    if done.returncode:
        return " ".join(done.stderr.split()) or f"ssh ended with {done.returncode}"
    return None


def is_loopback(name: str) -> bool:
    """Whether a name or address means the machine itself."""
    return name in _OWN_NAMES or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def master_address(nodes: Sequence[Node], given: str) -> str:
    """Address where ranks meet: `given`, or else the first node's address.

    Raises:
        InputError: It has no address, or a loopback address that other nodes would take for themselves.
    """
    if given:
        try:
            resolve(given)
        except OSError as error:
            raise InputError(f"MASTER_ADDR {given}: {error.strerror or error}") from error
        return given
    try:
        address = find_address(nodes[0])
    except InputError as error:
        raise InputError(f"HOSTFILE's first node {error}; name it by an address, or set MASTER_ADDR") from error
    remote = next((node.name for node in nodes[1:] if not is_loopback(node.host)), None)
    if is_loopback(address) and remote is not None:
        raise InputError(
            f"HOSTFILE's first node {nodes[0].name} is {address}, which {remote} cannot reach; set MASTER_ADDR"
        )
    return address


def check_port(address: str, port: int, is_here: bool) -> None:
    """Checks that rank 0 can listen on a port, if it will run on this machine.

    Raises:
        InputError: Another process listens there, and still does after `_PORT_SECONDS`.
    """
    if not (is_here or _is_own(resolve(address))):
        return
    deadline = time.monotonic() + _PORT_SECONDS
    while True:
        try:
            socket.create_server(("", port)).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise InputError(f"MASTER_PORT {port}: {error.strerror}") from error
            if time.monotonic() > deadline:
                raise InputError(
                    f"MASTER_PORT {port}: another process of this machine listens there; set a different MASTER_PORT"
                ) from error
            time.sleep(0.5)
        else:
            return


def _is_own(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((address.partition("%")[0], 0))
        except OSError:
            return False
    return True


def check_ssh(nodes: Sequence[Node]) -> None:
    """Checks what DeepSpeed's launcher needs: names that pdsh accepts, and ssh to every node without a password.

    Raises:
        InputError: A node would not start, and the others would wait for it.
    """
    for node in nodes:
        if ":" in node.name:
            raise InputError(f"HOSTFILE, {node.name}: pdsh takes no IPv6 address; give it a 'Host' in ~/.ssh/config")
    with ThreadPoolExecutor(32) as threads:
        problems = list(threads.map(ssh_problem, nodes))
    failed = [f"{node.name}: {problem}" for node, problem in zip(nodes, problems, strict=True) if problem]
    if failed:
        more = f" (and {len(failed) - 1} more nodes)" if len(failed) > 1 else ""
        raise InputError(f"HOSTFILE, {failed[0]}{more}; python -m vlm2vec.doctor --hostfile checks all nodes")


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m vlm2vec.doctor.hostfile",
        description="Checks a hostfile and prints the address at which its ranks meet; launch/multinode.sh calls it.",
        examples=("python -m vlm2vec.doctor.hostfile launch/hostfile.example --node_rank 0",),
    )
    made.add_argument("hostfile", type=Path, help="File with the nodes, see launch/hostfile.example.")
    made.add_argument(
        "--node_rank", type=int, help="Number of this node. If not given: ssh starts the nodes, and is checked too."
    )
    made.add_argument(
        "--master_addr", default="", metavar="ADDRESS", help="Address of rank 0. If not given: the first node's."
    )
    made.add_argument("--master_port", type=int, default=29500, metavar="PORT", help="Port of rank 0.")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the address where the ranks of a hostfile meet."""
    options = parser().parse_args(argv)
    nodes, number = read_hostfile(options.hostfile), options.node_rank
    if number is not None and not 0 <= number < len(nodes):
        raise InputError(f"NODE_RANK {number}: {options.hostfile} has {len(nodes)} nodes, numbered from 0")
    if not 1 <= options.master_port <= 65535:
        raise InputError(f"MASTER_PORT {options.master_port}: must be 1 to 65535")
    address = master_address(nodes, options.master_addr)
    check_port(address, options.master_port, number == 0)
    if number is None:
        check_ssh(nodes)
    print(address)


if __name__ == "__main__":
    sys.exit(run_program(main))
