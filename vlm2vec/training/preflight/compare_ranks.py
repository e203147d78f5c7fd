"""Startup check: stop if any rank's code, packages, flags or files differ from rank 0's."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vlm2vec
from vlm2vec.installed.settings_files import engine_file
from vlm2vec.ranks import refuse_together, send_from_first
from vlm2vec.training.checkpoints.record import RECORDED_PACKAGES
from vlm2vec.training.flags.run import POLICIES

_MOST = 5
ABSENT = "absent"


def compare_ranks(flags: Mapping[str, Any]) -> None:
    """Stops all ranks if a rank's flags, code, packages or files differ from the first rank's (a collective).

    Raises:
        InputError: On the first rank; it names the ranks and what differs.
        SystemExit: On the other ranks.
    """
    own = facts(flags)
    differing = differences(own, send_from_first(own, dict[str, str]))
    refuse_together(f"on {socket.gethostname()} is not as on rank 0: {differing}" if differing else None)


def differences(own: Mapping[str, str], first: Mapping[str, str]) -> str:
    """Facts that differ from the first rank's, with both values, as text; empty if there are none."""
    names = [name for name in {**first, **own} if own.get(name, ABSENT) != first.get(name, ABSENT)]
    texts = [f"{name} is {own.get(name, ABSENT)} instead of {first.get(name, ABSENT)}" for name in names]
    rest = [f"and {len(texts) - _MOST} more"] if len(texts) > _MOST else []
    return ", ".join(texts[:_MOST] + rest)


def facts(flags: Mapping[str, Any]) -> dict[str, str]:
    """Facts that must be equal on every rank, by a name that users know."""
    compared = {f"--{name}": repr(value) for name, value in flags.items() if not POLICIES[name].per_node}
    packages = {f"package {name}": version(name) for name in RECORDED_PACKAGES}
    root = Path(vlm2vec.__file__).parent
    code = {f"file {path.relative_to(root.parent)}": _hash(path) for path in sorted(root.rglob("*.py"))}
    engine = {"--deepspeed": _hash(engine_file(Path(flags["deepspeed"])))}
    return compared | engine | packages | code | _model_facts(Path(flags["model_name"]))


def _model_facts(folder: Path) -> dict[str, str]:
    """Compares small files by content and weights by size: hashing gigabytes would take too long."""
    if not folder.is_dir():
        return {}
    return {
        f"--model_name's {path.name}": _hash(path) if path.suffix == ".json" else f"{path.stat().st_size} bytes"
        for path in sorted(folder.iterdir())
        if path.suffix in (".json", ".safetensors", ".bin")
    }


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError:
        return ABSENT  # the code that needs the file reports it
