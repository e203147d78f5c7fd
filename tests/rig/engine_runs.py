"""Short runs of real engines, whose checkpoints several tests read (fixture `engine_runs_dir`)."""

from __future__ import annotations

import json
from pathlib import Path

from trials.rig.forked import run_ranks
from trials.rig.run_flags import run_flags

# The ZeRO stage and what else differs. ZeRO-3 comes last: its engine replaces torch.nn.functional.linear for the rest
# of the process.
RUNS: dict[str, tuple[int, list[str]]] = {
    "zero1": (1, ["--freeze_vision_tower"]),
    "zero1-bf16": (1, ["--bf16"]),
    "zero2": (2, []),
    "zero2-bf16": (2, ["--bf16"]),
    "zero2-lora": (2, ["--lora"]),
    "zero3": (3, ["--freeze_projector"]),
    "zero3-lora": (3, ["--lora", "--lora_r", "4"]),
}
REFERENCE = "reference-bf16"
COMMON = ["--max_steps", "2", "--global_batch_size", "2", "--learning_rate", "1e-2"]


def train_engines(model: Path, reference_model: Path, root: Path) -> None:
    """Fills a folder for each of RUNS, and one for the reference model, on 2 ranks."""
    jobs = [("encode reference", run_flags(reference_model, "unused", root / REFERENCE, "zero2", *COMMON, "--bf16"))]
    for name, (stage, extra) in RUNS.items():
        jobs.append(("train and save", run_flags(model, "unused", root / name, f"zero{stage}", *COMMON, *extra)))
    (root / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(2, ["-m", "tests.distributed.workers.engine", str(root / "jobs.json")], root)
