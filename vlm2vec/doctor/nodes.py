"""Checks the nodes of a hostfile: whether the launcher and the ranks can reach them."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlm2vec.doctor.finding import FAIL, OK, WARN, Finding
from vlm2vec.doctor.hostfile import Node, find_address, master_address, read_hostfile, resolve, ssh_problem
from vlm2vec.errors import InputError


def node_findings(path: Path) -> Iterator[Finding]:
    """Checks what the launcher needs here, each node's name, and a command on it through ssh."""
    nodes = read_hostfile(path)
    if shutil.which("pdsh") is None:
        yield Finding(
            WARN,
            "pdsh is not installed",
            "apt-get install pdsh; or start every node with its NODE_RANK (no ssh needed)",
        )
    else:
        yield Finding(OK, "pdsh is installed")
    try:
        address = master_address(nodes, "")
    except InputError as error:
        yield Finding(FAIL, str(error), "put its address into /etc/hosts of every node or into the hostfile")
    else:
        yield _reach(nodes[0], f"{nodes[0].name} ({resolve(address)}), where ranks meet")
    for node in nodes[1:]:
        try:
            place = f"{node.name} ({resolve(find_address(node))})"
        except InputError as error:
            place = str(error)  # ssh may still reach it, and ranks look up the first node only
        yield _reach(node, place)
    yield from public_addresses([node.host for node in nodes])
    yield own_address(len(nodes))


def public_addresses(names: Sequence[str]) -> Iterator[Finding]:
    """Warns of nodes or a `MASTER_ADDR` with a public address: ranks trust whoever reaches their ports."""
    given = os.environ.get("MASTER_ADDR")
    public = []
    for name in dict.fromkeys([*([given] if given else []), *names]):
        try:
            if ipaddress.ip_address(resolve(name).partition("%")[0]).is_global:
                public.append(f"{name} ({resolve(name)})")
        except (OSError, ValueError):
            continue  # no address; reported by the check that needs one
    if public:
        yield Finding(
            WARN,
            f"public address: {', '.join(public[:4])}{', ...' if len(public) > 4 else ''}; anyone who reaches a rank's "
            "port can join as a rank",
            "use addresses of a private network, or a firewall that lets only the nodes reach one another",
        )


def _reach(node: Node, place: str) -> Finding:
    if shutil.which("ssh") is None:
        return Finding(WARN, f"{place}; no ssh here to try it", "start every node with its NODE_RANK")
    problem = ssh_problem(node)
    if problem is None:
        return Finding(OK, f"{place}, {node.slots} slots: ssh works")
    return Finding(FAIL, f"{place}: {problem}", f"ssh {node.name} true must work without a password: ssh-copy-id")


def own_address(num_nodes: int) -> Finding:
    """Checks the address that ranks announce to each other: their host name's, unless an interface is named."""
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if variable in os.environ:
            return Finding(OK, f"{variable}={os.environ[variable]}")
    name = socket.gethostname()
    try:
        address = str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
    except OSError as error:
        return Finding(
            WARN, f"this host's name {name}: {error}", "set NETWORK_INTERFACE for launch/multinode.sh, such as eth0"
        )
    if address.startswith("127.") and num_nodes > 1:
        return Finding(
            WARN,
            f"this host's name {name} resolves to {address}, which other nodes cannot reach",
            "set NETWORK_INTERFACE for launch/multinode.sh, such as eth0",
        )
    return Finding(OK, f"this host's name {name} resolves to {address}")
