"""The launch scripts: whole, checked, and starting what they say; programs of the cluster are small scripts here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.distributed.launcher import REPOSITORY
from vlm2vec.doctor.nodes import read_hostfile
from vlm2vec.training.arguments import parse_arguments

LAUNCH = REPOSITORY / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
# Says how it was called, in what environment, and ends as it is told to.
PYTHON = """#!/usr/bin/env bash
trap 'echo "signal USR1 $RANK" >> "$CALLS"; exit 75' USR1
trap 'echo "signal TERM $RANK" >> "$CALLS"; exit 75' TERM
echo "rank=${RANK-} local=${LOCAL_RANK-} of=${WORLD_SIZE-} at=${MASTER_ADDR-}:${MASTER_PORT-} $*" >> "$CALLS"
[[ ${RANK-} != "${FAILING-none}" ]] || exit 3
for ((wait = 0; wait < ${TENTHS-0}; wait++)); do sleep 0.1; done
exit "${ENDS-0}"
"""
SRUN = """#!/usr/bin/env bash
[[ $1 == --kill-on-bad-exit=1 ]] || exit 9
shift
status=0
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) "$@" || status=$?
done
exit $status
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf 'first\\nsecond\\n'; else echo "scontrol $*" >> "$CALLS"; fi
"""


class Site:
    """A folder of stand-ins on the PATH, and what they wrote down."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        shards = folder / "shards"
        shards.mkdir()
        (shards / "manifest.json").write_text("{}")
        for name, text in (("python", PYTHON), ("srun", SRUN), ("scontrol", SCONTROL), ("pdsh", "#!/bin/sh\n")):
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(text)
            program.chmod(0o755)
        self.environment = {
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(self.calls),
            **{"MODEL": "base", "SHARDS": str(shards), "OUTPUT": str(folder / "run")},
        }

    def run(
        self, script: Path, *flags: str, cwd: Path = REPOSITORY, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(script), *flags],
            env={**self.environment, **variables},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def lines(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=20)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", str(script)], check=True, timeout=60, cwd=REPOSITORY)


@pytest.mark.parametrize("missing", ["MODEL", "SHARDS", "OUTPUT"])
def test_what_is_not_set_is_asked_for(missing: str, site: Site) -> None:
    done = site.run(LAUNCH / "local.sh", **{missing: ""})
    assert done.returncode != 0
    assert missing in done.stderr
    assert "set it to" in done.stderr
    assert site.lines() == []


@pytest.mark.parametrize(
    "wrong", [{"RECIPE": "absent.yaml"}, {"ENGINE": "absent.json"}, {"SHARDS": "/absent"}, {"GPUS": "all"}]
)
def test_wrong_values_are_told(wrong: dict[str, str], site: Site) -> None:
    done = site.run(LAUNCH / "local.sh", **wrong)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert next(iter(wrong)) in done.stderr


def test_the_training_program_takes_what_scripts_pass(site: Site) -> None:
    done = site.run(LAUNCH / "local.sh", "--save_steps", "7", GPUS="4", MASTER_PORT="1234")
    assert done.returncode == 0, done.stderr
    call = site.lines()[-1]
    launcher, flags = call.split(" --module vlm2vec.train ")
    assert launcher.endswith("-m deepspeed.launcher.runner --num_gpus 4 --master_port 1234")
    arguments = parse_arguments(flags.split())
    assert (arguments.training.save_steps, arguments.model.model_name) == (7, "base")
    assert arguments.training.resume == "auto"


def test_several_nodes_with_and_without_ssh(site: Site) -> None:
    hosts = site.folder / "hostfile"
    shutil.copy(LAUNCH / "hostfile.example", hosts)
    assert [(node.name, node.slots) for node in read_hostfile(hosts)] == [("node-0", 8), ("node-1", 8)]
    common = {"HOSTFILE": str(hosts), "NETWORK_INTERFACE": "eth7"}
    assert site.run(LAUNCH / "multinode.sh", **common).returncode == 0
    assert site.run(LAUNCH / "multinode.sh", NODE_RANK="1", **common).returncode == 0
    with_ssh, without = site.lines()
    for line in (with_ssh, without):
        assert f"--hostfile {hosts} --master_addr node-0 --master_port 29500" in line
    assert "--launcher pdsh" in with_ssh
    assert "--no_ssh --node_rank 1" in without
    passed = (site.folder / "run" / ".deepspeed_env").read_text().splitlines()
    assert "GLOO_SOCKET_IFNAME=eth7" in passed
    assert "OMP_NUM_THREADS=1" in passed


def test_slurm_gives_each_task_its_rank_and_queues_again(site: Site) -> None:
    slurm = {
        **{"SLURM_JOB_ID": "77", "SLURM_NTASKS": "3", "SLURM_SUBMIT_DIR": str(REPOSITORY)},
        **{"SLURM_JOB_NODELIST": "n[0-1]", "FLAGS": "--save_steps 7"},
    }
    # The script puts the repository's own .venv first, so the stand-in comes in through a copy of the repository.
    copy = site.folder / "copy"
    shutil.copytree(LAUNCH, copy / "launch")
    shutil.copytree(REPOSITORY / "ds_configs", copy / "ds_configs")
    slurm["SLURM_SUBMIT_DIR"] = str(copy)
    done = site.run(LAUNCH / "slurm.sbatch", **slurm)
    assert done.returncode == 0, done.stderr
    starts = site.lines()
    assert [line.split(" -m ")[0] for line in starts] == [
        f"rank={r} local={r % 2} of=3 at=first:20077" for r in range(3)
    ]
    assert parse_arguments(starts[0].split(" -m vlm2vec.train ")[1].split()).training.save_steps == 7
    assert site.run(LAUNCH / "slurm.sbatch", ENDS="75", **slurm).returncode == 0
    assert site.lines()[-1] == "scontrol requeue 77"
    assert site.run(LAUNCH / "slurm.sbatch", ENDS="3", **slurm).returncode == 3
    assert site.lines().count("scontrol requeue 77") == 1
    del slurm["SLURM_JOB_ID"]
    assert "sbatch" in site.run(LAUNCH / "slurm.sbatch", **slurm).stderr


NODE = {"NODES": "2", "NODE_RANK": "1", "GPUS": "2", "MASTER_ADDR": "first"}


def test_a_nodes_ranks(site: Site) -> None:
    assert site.run(LAUNCH / "node.sh", "--save_steps", "7", **NODE).returncode == 0
    assert sorted(line.split(" -m ")[0] for line in site.lines()) == [
        "rank=2 local=0 of=4 at=first:29500",
        "rank=3 local=1 of=4 at=first:29500",
    ]


def test_a_failing_rank_ends_its_node(site: Site) -> None:
    start = time.monotonic()
    assert site.run(LAUNCH / "node.sh", FAILING="3", TENTHS="500", GRACE="1", **NODE).returncode == 3
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_ranks(number: signal.Signals, site: Site) -> None:
    node = subprocess.Popen(
        [str(LAUNCH / "node.sh")],
        env={**site.environment, **NODE, "TENTHS": "300"},
        cwd=REPOSITORY,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 30
        while len(site.lines()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        node.send_signal(number)
        assert node.wait(timeout=30) == 75
    finally:
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGKILL)
    name = number.name.removeprefix("SIG")
    assert sorted(site.lines()[2:]) == [f"signal {name} 2", f"signal {name} 3"]


def test_kubernetes_starts_as_many_pods_as_it_tells_the_ranks() -> None:
    documents: list[dict[str, Any]] = list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))
    assert [each["kind"] for each in documents] == ["ConfigMap", "Service", "Job"]
    values, job = documents[0]["data"], documents[2]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == int(values["NODES"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(values["GPUS"])
    assert {"MODEL", "SHARDS", "OUTPUT", "RECIPE", "ENGINE", "MASTER_PORT"} <= values.keys()
    assert (REPOSITORY / values["RECIPE"]).is_file()
    assert (REPOSITORY / values["ENGINE"]).is_file()
    service = documents[1]["metadata"]["name"]
    assert {each["name"]: each.get("value") for each in container["env"]}["MASTER_ADDR"] == (
        f"{documents[2]['metadata']['name']}-0.{service}"
    )
    assert pod["subdomain"] == service
    assert sys.executable  # the container runs launch/node.sh, which the tests above run
    assert "exec launch/node.sh" in container["args"][0]
    subprocess.run(["bash", "-n", "-c", container["args"][0]], check=True, timeout=20)
