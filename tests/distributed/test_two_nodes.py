"""Two real nodes: launch/multinode.sh runs on both, a rank is killed, the job ends, and the run resumes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.two_nodes import ADDRESSES, INTERFACE, Nodes, has_ssh, two_nodes, why_not
from trials.rig.launcher import REPOSITORY, environment

REASON = why_not()
pytestmark = [pytest.mark.skipif(REASON is not None, reason=str(REASON)), pytest.mark.timeout(3 * 1200)]
PORT = 29610
PATIENCE = 1200  # seconds, against hangs


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with two_nodes(tmp_path_factory.mktemp("nodes")) as made:
        yield made


class Job:
    """One start of a run on both nodes, in process groups of their own."""

    def __init__(self, nodes: Nodes, variables: dict[str, str], flags: list[str], with_ssh: bool, folder: Path) -> None:
        hostfile = nodes.folder / "hostfile"
        hostfile.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
        script = [str(REPOSITORY / "launch" / "multinode.sh"), *flags]
        path = f"{nodes.folder / 'bin'}{os.pathsep}{variables['PATH']}"
        known = {**variables, "PATH": path, "HOSTFILE": str(hostfile), "NETWORK_INTERFACE": INTERFACE}
        self.logs = [folder / f"node{node}.log" for node in range(1 if with_ssh else 2)]
        self.processes: list[subprocess.Popen[bytes]] = []
        for node, log in enumerate(self.logs):
            ranked = known if with_ssh else {**known, "NODE_RANK": str(node)}
            with log.open("wb") as output:
                self.processes.append(
                    subprocess.Popen(
                        nodes.command(node, *script),
                        env=ranked,
                        cwd=REPOSITORY,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def output(self) -> str:
        return "\n".join(log.read_text(errors="replace") for log in self.logs)

    def wait(self, seconds: float) -> list[int]:
        deadline = time.monotonic() + seconds
        return [process.wait(timeout=max(0.1, deadline - time.monotonic())) for process in self.processes]

    def end(self, output_dir: Path) -> None:
        """Whatever is left: the launchers by group, ranks on the other side of ssh by their run's folder."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for pid in processes_of(output_dir):
            os.kill(pid, signal.SIGKILL)


def processes_of(output_dir: Path, rank: int | None = None) -> list[int]:
    """The run's Python processes; with a rank, that rank's own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        is_ours = str(output_dir).encode() in words and int(folder.name) != os.getpid()
        is_rank = b"vlm2vec.train" in words and f"RANK={rank}".encode() in variables
        if is_ours and (rank is None or is_rank):
            found.append(int(folder.name))
    return found


def test_a_killed_rank_ends_the_job_and_the_run_resumes(
    nodes: Nodes, forked_python: Path, mini_model_dir: Path, mini_shards_dir: Path, tmp_path: Path
) -> None:
    """The first start goes through ssh where there is a server, the second one is made on each node."""
    output_dir = tmp_path / "run"
    variables = {
        **environment(forked_python),
        **{"MODEL": str(mini_model_dir), "SHARDS": str(mini_shards_dir), "OUTPUT": str(output_dir)},
        **{"RECIPE": "launch/recipes/mini.yaml", "MASTER_PORT": str(PORT)},
    }
    flags = ["--global_batch_size", "64", "--warmup_steps", "0", "--dataloader_num_workers", "0", "--save_steps", "2"]
    flags += ["--logging_steps", "1"]
    first = Job(nodes, variables, [*flags, "--max_steps", "100000"], has_ssh(), tmp_path)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (output_dir / "checkpoint-2").is_dir() and time.monotonic() < deadline:
            assert all(process.poll() is None for process in first.processes), first.output()[-3000:]
            time.sleep(0.1)
        assert (output_dir / "checkpoint-2").is_dir(), first.output()[-3000:]
        (victim,) = processes_of(output_dir, rank=1)
        os.kill(victim, signal.SIGKILL)
        exit_codes = first.wait(60)
    finally:
        first.end(output_dir)
    assert all(exit_codes), first.output()[-3000:]
    assert "exits with return code = -9" in first.output()
    assert ADDRESSES[1] in first.output()
    assert processes_of(output_dir) == []

    steps = max(int(path.name.split("-")[1]) for path in output_dir.glob("checkpoint-*")) + 2
    second = Job(nodes, variables, [*flags, "--max_steps", str(steps), "--allow_changed", "max_steps"], False, tmp_path)
    try:
        assert second.wait(PATIENCE) == [0, 0], second.output()[-3000:]
    finally:
        second.end(output_dir)
    assert "resumed from" in second.output()
    assert re.search(rf"\b{steps}/{steps} +\d", second.output())
    assert "2 ranks" in second.output()
