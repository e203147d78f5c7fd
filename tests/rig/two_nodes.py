"""Two nodes on one machine: connected network namespaces, each with its own ssh server."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")
INTERFACE = "eth0"  # in both: the ranks of both get one name
_SECONDS = 200


def why_not() -> str | None:
    """Why namespaces cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "no ip (apt-get install iproute2)"
    name = f"probe{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False, timeout=_SECONDS).returncode:
        return "this machine does not permit network namespaces"
    subprocess.run(["ip", "netns", "delete", name], check=True, timeout=_SECONDS)
    return None


def has_ssh() -> bool:
    """Whether nodes can have ssh servers, and the launcher its pdsh."""
    return all(shutil.which(tool) for tool in ("sshd", "ssh", "ssh-keygen", "pdsh"))


@dataclass(frozen=True)
class Nodes:
    """The two nodes.

    Attributes:
        names: Of their namespaces.
        folder: Keys, settings, and `bin/ssh`, which knows them.
    """

    names: tuple[str, str]
    folder: Path

    def command(self, node: int, *words: str) -> list[str]:
        """Words that run a command on a node."""
        return ["ip", "netns", "exec", self.names[node], *words]


@contextmanager
def two_nodes(folder: Path) -> Iterator[Nodes]:
    """Makes the nodes and takes everything away again."""
    nodes = Nodes((f"vlm{os.getpid()}a", f"vlm{os.getpid()}b"), folder)
    servers: list[subprocess.Popen[bytes]] = []
    try:
        _connect(nodes)
        if has_ssh():
            _make_keys(folder)
            servers = [_serve(nodes, node) for node in range(2)]
            _wait_for_servers(nodes)
        yield nodes
    finally:
        for server in servers:
            server.terminate()
            server.wait(timeout=_SECONDS)
        for name in nodes.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False, timeout=_SECONDS)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=_SECONDS)


def _connect(nodes: Nodes) -> None:
    first, second = nodes.names
    _ip("netns", "add", first)
    _ip("netns", "add", second)
    _ip("-n", first, "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", second)
    for name, address in zip(nodes.names, ADDRESSES, strict=True):
        _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
        _ip("-n", name, "link", "set", INTERFACE, "up")
        _ip("-n", name, "link", "set", "lo", "up")


def _make_keys(folder: Path) -> None:
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True, timeout=_SECONDS
        )
    shutil.copy(folder / "user.pub", folder / "authorized")
    (folder / "sshd_config").write_text(
        f"HostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'authorized'}\nStrictModes no\n"
        f"PidFile none\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n"
    )
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder / 'user'}\nIdentitiesOnly yes\nStrictHostKeyChecking no\n"
        f"UserKnownHostsFile /dev/null\nLogLevel ERROR\n"
    )
    ssh = folder / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder / "ssh_config"} "$@"\n')
    ssh.chmod(0o755)


def _serve(nodes: Nodes, node: int) -> subprocess.Popen[bytes]:
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = shutil.which("sshd")
    assert sshd is not None
    command = nodes.command(node, sshd, "-D", "-f", str(nodes.folder / "sshd_config"))
    with (nodes.folder / f"sshd{node}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _wait_for_servers(nodes: Nodes) -> None:
    deadline = time.monotonic() + _SECONDS
    for node, address in enumerate(ADDRESSES):
        while True:
            probe = nodes.command(
                1 - node, str(nodes.folder / "bin" / "ssh"), "-o", "ConnectTimeout=2", address, "true"
            )
            if subprocess.run(probe, capture_output=True, check=False, timeout=_SECONDS).returncode == 0:
                break
            assert time.monotonic() < deadline, (nodes.folder / f"sshd{node}.log").read_text()
            time.sleep(0.1)
