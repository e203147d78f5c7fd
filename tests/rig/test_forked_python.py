"""The forked `python` ends with its module's exit code, and kills the module when it is killed."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from trials.rig.forked import are_gone
from trials.rig.launcher import environment
from trials.rig.patience import HANG_SECONDS

WAITING = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
print(os.getpid(), sys.argv[1], os.environ["MARK"], flush=True)
while True:
    signal.pause()
"""


def test_exit_codes_and_what_is_said(forked_python: Path, tmp_path: Path) -> None:
    def ran(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [forked_python, *words],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    told = "error: unknown option --nonsense; vlm2vec.train --help lists the options\n"
    code, _, error = ran("-m", "vlm2vec.train", "--nonsense")
    assert (code, error) == (2, told)
    assert ran("-c", "print(1)") == (0, "1\n", "")
    code, _, error = ran("-u", "-m", "no_such_module")
    assert code == 1
    assert "No module named no_such_module" in error
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint(sys.argv[1], sys.path[0], __name__)\nsys.exit(sys.argv[0])\n")
    assert ran(str(script), "word") == (1, f"word {tmp_path} __main__\n", f"{script}\n")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_signals_reach_the_module(number: signal.Signals, code: int, forked_python: Path, tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    process = subprocess.Popen(
        [forked_python, "-m", "waiting", "word"],
        cwd=tmp_path,
        env={**environment(), "MARK": "mark"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        pid, *said = process.stdout.readline().split()
        assert said == ["word", "mark"]
        process.send_signal(number)
        assert process.wait(HANG_SECONDS) == code
        assert are_gone([int(pid)])
    finally:
        process.kill()
        process.wait()
