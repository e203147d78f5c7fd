"""The nodes of a hostfile: can they be reached as the launcher reaches them."""

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
    """Each node's name, and a command through ssh; what the launcher needs here."""
    nodes = read_hostfile(path)
    if shutil.which("pdsh") is None:
        yield Finding(WARN, "no pdsh", "apt-get install pdsh; or start every node with its NODE_RANK (no ssh needed)")
    else:
        yield Finding(OK, "pdsh is there")
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
            place = str(error)  # ssh may know a way, and ranks look for the first node only
        yield _reach(node, place)
    yield from public_addresses([node.host for node in nodes])
    yield own_address(len(nodes))


def public_addresses(names: Sequence[str]) -> Iterator[Finding]:
    """Warns of nodes, or a `MASTER_ADDR`, with an address of the internet: ranks trust whoever reaches their ports."""
    given = os.environ.get("MASTER_ADDR")
    public = []
    for name in dict.fromkeys([*([given] if given else []), *names]):
        try:
            if ipaddress.ip_address(resolve(name).partition("%")[0]).is_global:
                public.append(f"{name} ({resolve(name)})")
        except (OSError, ValueError):
            continue  # without an address, which is reported where ranks need it
    if public:
        yield Finding(
            WARN,
            f"public address: {', '.join(public[:4])}{', ...' if len(public) > 4 else ''}; ranks take whoever reaches "
            "their ports for a rank",
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
