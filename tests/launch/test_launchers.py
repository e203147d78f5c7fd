"""The launch scripts: checks, and the commands that they start, with scripts in place of the cluster's programs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from trials.rig.launcher import REPOSITORY
from trials.rig.patience import HANG_SECONDS
from vlm2vec.doctor.hostfile import read_hostfile
from vlm2vec.training.flags.run import parse_arguments

LAUNCH = REPOSITORY / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
# Says how it was called, in what environment, and ends with a chosen exit code; hostfiles are read by the real program.
PYTHON = """#!/usr/bin/env bash
[[ $1 != -c && $2 != vlm2vec.doctor.hostfile ]] || exec "$REAL_PYTHON" "$@"
trap 'echo "signal USR1 $RANK" >> "$CALLS"; exit 75' USR1
trap 'echo "signal TERM $RANK" >> "$CALLS"; exit 75' TERM
echo "rank=${RANK-} local=${LOCAL_RANK-} of=${WORLD_SIZE-} at=${MASTER_ADDR-}:${MASTER_PORT-} $*" >> "$CALLS"
echo "cpus=${SRUN_CPUS_PER_TASK-} allocator=${PYTORCH_ALLOC_CONF-}" >> "$CALLS.environment"
[[ ${RANK-} != "${REFUSING-none}" ]] || { sleep 0.5; exit 2; }
[[ ${RANK-} != "${FAILING-none}" ]] || exit 3
for ((wait = 0; wait < ${TENTHS-0}; wait++)); do sleep 0.1; done
exit "${ENDS-0}"
"""
# Knows the alias node-0 as 127.0.0.1, and refuses whoever is called gone.
SSH = """#!/usr/bin/env bash
case "$*" in
  *-G*node-0) echo "hostname 127.0.0.1" ;;
  *-G*) echo "hostname ${*: -1}" | sed 's/[^ ]*@//' ;;
  *gone*) echo "Connection refused" >&2; exit 255 ;;
esac
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
NOTHING = "#!/bin/sh\n"
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
        for name, text in (("python", PYTHON), ("srun", SRUN), ("scontrol", SCONTROL), ("ssh", SSH), ("pdsh", NOTHING)):
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(text)
            program.chmod(0o755)
        self.environment = {
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            **{"CALLS": str(self.calls), "REAL_PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)},
            **{"MODEL": "base", "SHARDS": str(shards), "OUTPUT": str(folder / "run")},
        }

    def run(self, script: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(script), *flags],
            env={**self.environment, **variables},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )

    def lines(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def environments(self) -> list[str]:
        return Path(f"{self.calls}.environment").read_text().splitlines()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=HANG_SECONDS)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", str(script)], check=True, timeout=HANG_SECONDS, cwd=REPOSITORY)


@pytest.mark.parametrize("missing", ["MODEL", "SHARDS", "OUTPUT"])
def test_what_is_not_set_is_asked_for(missing: str, site: Site) -> None:
    done = site.run(LAUNCH / "local.sh", **{missing: ""})
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {missing} is not set: set it to")
    assert done.stderr.count("\n") == 1
    assert site.lines() == []


@pytest.mark.parametrize(
    "wrong",
    [
        *({"RECIPE": "absent.yaml"}, {"ENGINE": "absent.json"}, {"SHARDS": "/absent"}, {"SHARDS": "~/absent"}),
        *({"GPUS": "all"}, {"GPUS": "0"}, {"MASTER_PORT": "any"}, {"OUTPUT": "s3://bucket/run"}),
    ],
    ids=str,
)
def test_wrong_values_are_reported(wrong: dict[str, str], site: Site) -> None:
    done = site.run(LAUNCH / "local.sh", **wrong)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert next(iter(wrong)) in done.stderr
    assert site.lines() == []


def test_the_training_program_takes_what_scripts_pass(site: Site) -> None:
    done = site.run(LAUNCH / "local.sh", "--save_steps", "7", GPUS="4", MASTER_PORT="1234")
    assert done.returncode == 0, done.stderr
    call = site.lines()[-1]
    launcher, flags = call.split(" --module vlm2vec.train ")
    assert launcher.endswith("-m deepspeed.launcher.runner --log_level error --num_gpus 4 --master_port 1234")
    arguments = parse_arguments(flags.split())
    assert (arguments.training.save_steps, arguments.model.model_name) == (7, "base")
    assert arguments.training.resume == "auto"


@pytest.mark.parametrize("shards", ["https://host/shards", "s3://bucket/shards", "~/my shards", "{}/my shards"])
def test_shards_behind_urls_in_the_home_folder_and_with_blanks(shards: str, site: Site) -> None:
    shards = shards.format(site.folder)
    (site.folder / "shards").rename(site.folder / "my shards")
    folder, home = str(site.folder / "my run"), str(site.folder)
    done = site.run(LAUNCH / "local.sh", GPUS="1", SHARDS=shards, OUTPUT=folder, HOME=home, MODEL="~/base")
    assert done.returncode == 0, done.stderr
    paths = [shards.replace("~", home), folder, f"{home}/base"]
    call = site.lines()[-1]
    assert [f" --{flag} {path} --" in call for flag, path in zip(FLAGS, paths, strict=True)] == [True] * 3


FLAGS = ("dataset_name", "output_dir", "model_name")


def hosts(site: Site, text: str) -> str:
    path = site.folder / "hostfile"
    path.write_bytes(text.encode())
    return str(path)


def test_several_nodes_with_and_without_ssh(site: Site) -> None:
    example = (LAUNCH / "hostfile.example").read_text()
    assert [(node.name, node.slots) for node in read_hostfile(LAUNCH / "hostfile.example")] == [
        ("node-0", 8),
        ("node-1", 8),
    ]
    common = {"HOSTFILE": hosts(site, example), "NETWORK_INTERFACE": "eth7", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(free_port())}
    assert site.run(LAUNCH / "multinode.sh", **common).returncode == 0
    assert site.run(LAUNCH / "multinode.sh", NODE_RANK="1", **common).returncode == 0
    with_ssh, without = site.lines()
    for line in (with_ssh, without):
        assert f"--hostfile {common['HOSTFILE']} --master_addr 127.0.0.1 --master_port {common['MASTER_PORT']}" in line
    assert "--launcher pdsh" in with_ssh
    assert "--no_ssh --node_rank 1" in without
    passed = (site.folder / "run" / ".deepspeed_env").read_text().splitlines()
    assert "GLOO_SOCKET_IFNAME=eth7" in passed
    assert "OMP_NUM_THREADS=1" in passed
    assert "PYTORCH_ALLOC_CONF=expandable_segments:True" in passed


@pytest.mark.parametrize("node", ["127.0.0.1", "root@127.0.0.1", "node-0", "root@node-0"])
def test_ranks_get_an_address_instead_of_an_ssh_alias(node: str, site: Site) -> None:
    """A user, an alias of ssh's configuration, Windows' line ends and trailing blanks are no part of an address."""
    file = hosts(site, f"# nodes\r\n\r\n  {node} \t slots=2  # the first\r\n")
    done = site.run(LAUNCH / "multinode.sh", HOSTFILE=file, NODE_RANK="0", MASTER_PORT=str(free_port()))
    assert done.returncode == 0, done.stderr
    assert "--master_addr 127.0.0.1 " in site.lines()[-1]


@pytest.mark.parametrize(
    ("text", "variables", "reason"),
    [
        ("root@no-such-node.invalid slots=1\n", {"NODE_RANK": "0"}, "no-such-node.invalid"),
        ("127.0.0.1 slots=1\n", {"NODE_RANK": "0", "MASTER_ADDR": "root@127.0.0.1"}, "MASTER_ADDR root@127.0.0.1"),
        ("127.0.0.1 slots=1\n", {"NODE_RANK": "1"}, "NODE_RANK 1"),
        ("127.0.0.1 slots=1\n", {"NODE_RANK": "first"}, "NODE_RANK=first"),
        ("127.0.0.1:22 slots=1\n", {}, "a name must not have a port"),
        ("127.0.0.1 slots=1\n10.0.0.1 slots=1\n", {"NODE_RANK": "0"}, "which 10.0.0.1 cannot reach"),
        ("127.0.0.1 slots=1\nroot@gone slots=1\n", {"MASTER_ADDR": "127.0.0.1"}, "root@gone: Connection refused"),
        ("127.0.0.1 slots=1\n::1 slots=1\n", {}, "pdsh takes no IPv6 address"),
        ("127.0.0.1 slots=1\n", {"SHARDS": "https://host/shards?a=1&b=2"}, "pdsh launcher cannot pass it on"),
    ],
)
def test_what_would_wait_is_refused_at_once(text: str, variables: dict[str, str], reason: str, site: Site) -> None:
    port = {"MASTER_PORT": str(free_port())}
    done = site.run(LAUNCH / "multinode.sh", **{"HOSTFILE": hosts(site, text), **port, **variables})
    assert (done.returncode, site.lines()) == (2, [])
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr


def test_slurm_gives_each_task_its_rank_and_queues_again(site: Site) -> None:
    slurm = {
        **{"SLURM_JOB_ID": "77", "SLURM_NTASKS": "3", "SLURM_SUBMIT_DIR": str(REPOSITORY)},
        **{"SLURM_JOB_NODELIST": "n[0-1]", "FLAGS": "--save_steps 7", "SLURM_CPUS_PER_TASK": "8"},
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
    assert set(site.environments()) == {"cpus=8 allocator=expandable_segments:True"}
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
    """The other rank would run for 10 hours."""
    assert site.run(LAUNCH / "node.sh", FAILING="3", TENTHS="360000", GRACE="1", **NODE).returncode == 3


def test_bad_input_is_a_nodes_exit_code_whoever_ends_first(site: Site) -> None:
    assert site.run(LAUNCH / "node.sh", FAILING="3", REFUSING="2", GRACE="20", **NODE).returncode == 2


@pytest.mark.parametrize("wrong", [{"NODES": ""}, {"NODE_RANK": "2"}, {"GPUS": "0"}, {"GRACE": "-1"}], ids=str)
def test_a_nodes_wrong_values_are_bad_input(wrong: dict[str, str], site: Site) -> None:
    done = site.run(LAUNCH / "node.sh", **{**NODE, **wrong})
    assert (done.returncode, site.lines()) == (2, [])
    assert done.stderr.startswith(f"error: {next(iter(wrong))}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_ranks(number: signal.Signals, site: Site) -> None:
    node = subprocess.Popen(
        [str(LAUNCH / "node.sh")],
        env={**site.environment, **NODE, "TENTHS": "360000"},
        cwd=REPOSITORY,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + HANG_SECONDS
        while len(site.lines()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        node.send_signal(number)
        assert node.wait(timeout=HANG_SECONDS) == 75
    finally:
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGKILL)
    name = number.name.removeprefix("SIG")
    assert sorted(site.lines()[2:]) == [f"signal {name} 2", f"signal {name} 3"]


def test_kubernetes_starts_as_many_pods_as_the_ranks_expect() -> None:
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
    assert "exec launch/node.sh" in container["args"][0]
    subprocess.run(["bash", "-n", "-c", container["args"][0]], check=True, timeout=HANG_SECONDS)


def test_kubernetes_counts_errors_only_and_does_not_repeat_bad_input() -> None:
    """The exit codes of docs/monitoring.md: 2 is bad input, 75 a stop with a checkpoint, 76 a rank of another node."""
    job = list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))[2]["spec"]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy is refused with any other
    assert job["podReplacementPolicy"] == "Failed"
    actions: dict[int | str, str] = {}
    for rule in job["podFailurePolicy"]["rules"]:
        for condition in rule.get("onPodConditions", []):
            actions[condition["type"]] = rule["action"]
            assert condition["status"] == "True"
        if codes := rule.get("onExitCodes"):
            assert (codes["containerName"], codes["operator"]) == (pod["containers"][0]["name"], "In")
            actions.update(dict.fromkeys(codes["values"], rule["action"]))
    assert actions == {"DisruptionTarget": "Ignore", 2: "FailJob", 75: "Ignore", 76: "Ignore"}


@pytest.mark.parametrize("size", ["", "small"])
def test_a_small_work_runs_on_the_cpu_though_torch_is_built_for_cuda(site: Site, size: str) -> None:
    """As pip installs torch; other work must not go to the CPU silently, and its programs then say what is wrong."""
    (site.folder / "cuda.py").write_text("import torch\ntorch.version.cuda = '13.0'\n")
    (site.folder / "bin/python").write_text(
        '#!/bin/sh\n[ $1 = -c ] && shift && script=$1 && shift\nexec "$REAL_PYTHON" -c "import cuda; $script" "$@"\n'
    )
    words = "unset DS_ACCELERATOR; source launch/checks.sh; choose_ranks RANKS $SIZE; echo $RANKS ${DS_ACCELERATOR-}"
    done = subprocess.run(
        ["bash", "-c", words],
        env={**site.environment, "SIZE": size, "PYTHONPATH": f"{site.folder}{os.pathsep}{REPOSITORY}"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    has_gpu = torch.accelerator.is_available() or any(Path("/dev").glob("nvidia*"))
    assert has_gpu or done.stdout.split() == ["2", *(["cpu"] if size else [])], done.stderr


def test_the_demo_removes_only_what_a_demo_made(site: Site) -> None:
    """Python ends at once, so that each start does no more than make room."""
    folder = site.folder / "my demo"
    folder.mkdir()

    def start(**variables: str) -> subprocess.CompletedProcess[str]:
        return site.run(LAUNCH / "demo.sh", **{"RANKS": "1", "ENDS": "3", "DEMO_DIR": str(folder), **variables})

    (folder / "thesis.txt").touch()
    for variables in ({}, {"DEMO_DIR": "~/my demo", "HOME": str(site.folder)}, {"DEMO_DIR": str(site.calls)}):
        site.calls.touch()
        done = start(**variables)
        assert (done.returncode, site.lines()) == (2, [])
        assert "not made by the demo" in done.stderr
        assert done.stderr.count("\n") == 1
    assert (folder / "thesis.txt").exists()
    (folder / "thesis.txt").unlink()
    assert start().returncode == 3  # an empty folder is taken
    for name in ("shards", "own_shards"):  # docs/data.md tells users to write the second
        (folder / name).mkdir()
    assert start().returncode == 3
    assert [(folder / name).exists() for name in ("shards", "own_shards")] == [False, True]


def test_the_demo_of_another_family_has_a_folder_of_its_own(site: Site) -> None:
    shutil.copytree(LAUNCH, site.folder / "launch")
    (site.folder / "bin/deepspeed").write_text(NOTHING)
    (site.folder / "bin/deepspeed").chmod(0o755)

    def start(**variables: str) -> tuple[int, list[str]]:
        site.calls.unlink(missing_ok=True)
        done = site.run(site.folder / "launch/demo.sh", **{"RANKS": "1", **variables})
        return done.returncode, [line for line in site.lines() if "mini_model" in line]

    status, (made,) = start()
    assert status == 0
    assert "--family phi3_v --dataset_name demo/mini/MMEB-train --output_dir demo/untrained" in made
    status, (asked, made) = start(FAMILY="other")
    assert status == 0
    assert "--family other --help" in asked
    assert "--family other --dataset_name demo-other/mini/MMEB-train --output_dir demo-other/untrained" in made
    assert start(FAMILY="unknown", ENDS="2")[0] == 2
    assert sorted(path.name for path in site.folder.glob("demo*")) == ["demo", "demo-other"]
