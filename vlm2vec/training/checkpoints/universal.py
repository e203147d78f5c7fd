"""Converts a checkpoint's state for a different number of ranks or ZeRO stage, by DeepSpeed's universal format.

python -m vlm2vec.training.checkpoints.universal ENGINE_STATE OUTPUT ZERO_STAGE
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser
from vlm2vec.ranks import on_first_rank
from vlm2vec.training.checkpoints.record import ENGINE_TAG
from vlm2vec.training.checkpoints.state_files import safe_state_files
from vlm2vec.training.checkpoints.writer import TEMPORARY_PREFIX

FOLDER = f"{TEMPORARY_PREFIX}universal"
_SECONDS_BETWEEN_LOOKS = 1.0
_STATES = ("fp32", "exp_avg", "exp_avg_sq")
# Entries of the global part of an optimizer's state, besides its parameter groups.
_GLOBAL_STATE = ("loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad")


@contextmanager
def universal_state(checkpoint: Path, output_dir: Path, zero_stage: int) -> Iterator[Path]:
    """Yields a temporary folder with a checkpoint's state that any number of ranks can load.

    The first rank converts in a separate process, whose memory is free again when it ends. The others wait in short
    collectives, so that a long conversion does not run into their time limit.

    Raises:
        InputError: On the first rank: the state cannot be read (the others end, see `on_first_rank`).
    """
    folder = output_dir / FOLDER
    process = _start(checkpoint, folder, zero_stage) if dist.get_rank() == 0 else None
    while not on_first_rank(lambda: _has_ended(process, checkpoint)):
        pass
    try:
        yield folder
        dist.barrier()
    finally:
        if dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _start(checkpoint: Path, folder: Path, zero_stage: int) -> subprocess.Popen[str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arguments = [str(checkpoint / ENGINE_TAG), str(folder / ENGINE_TAG), str(zero_stage)]
    return subprocess.Popen(
        [sys.executable, "-m", "vlm2vec.training.checkpoints.universal", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _has_ended(process: subprocess.Popen[str] | None, checkpoint: Path) -> bool:
    """Waits for the conversion for at most `_SECONDS_BETWEEN_LOOKS`; returns whether it has ended."""
    assert process is not None
    try:
        output, _ = process.communicate(timeout=_SECONDS_BETWEEN_LOOKS)
    except subprocess.TimeoutExpired:
        return False
    if process.returncode:
        last_line = (output.strip().splitlines() or ["no output"])[-1]
        raise InputError(f"{checkpoint / ENGINE_TAG}: cannot be resharded for this number of ranks ({last_line})")
    return True


def convert(source: Path, output: Path, zero_stage: int) -> None:
    """Writes an engine's state in DeepSpeed's universal format, as an engine of `zero_stage` expects it.

    DeepSpeed 0.19.8 converts only between numbers of ranks. Between stages, file names differ, ZeRO-3 writes bare
    tensors, lacks the moments' step where ZeRO-1/2 look for it, and keeps the optimizer's global part elsewhere.

    Args:
        source: Folder with the files of all ranks.
        output: Folder to make.
        zero_stage: ZeRO stage of the engine that will load it.
    """
    from deepspeed import __version__ as deepspeed_version
    from deepspeed.checkpoint import ds_to_universal

    with safe_state_files():
        ds_to_universal.main(
            argparse.Namespace(
                input_folder=str(source),
                output_folder=str(output),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,  # ZeRO-1/2 needs an empty record of tensor parallelism
            )
        )
        parameters = output / "zero"
        optimizer = _load(parameters / "optimizer_state.pt")
        step = _step(optimizer, parameters)
        for folder in {file.parent for file in parameters.rglob("exp_avg.pt")}:
            torch.save(step, folder / "step.pt")
            for file in (folder / f"{name}.pt" for name in _STATES):
                value = _load(file)
                if torch.is_tensor(value):
                    torch.save({"param": value}, file)
        groups = optimizer["param_groups"]
        small = {name: optimizer[name] for name in _GLOBAL_STATE if name in optimizer}
        small |= {"ds_version": deepspeed_version, "param_groups": groups}
        small |= {"optimizer_state_dict": {"state": {0: {"step": step}}, "param_groups": groups}}
        torch.save(small, parameters / "optimizer_state.pt")
        _write_model_state(output, zero_stage)


def _step(optimizer: dict[str, Any], parameters: Path) -> Any:
    """Adam's step counter, the same for all parameters."""
    if "optimizer_state_dict" in optimizer:  # ZeRO-3
        return optimizer["optimizer_state_dict"]["state"][0]["step"]
    return _load(next(parameters.rglob("step.pt")))


def _write_model_state(output: Path, zero_stage: int) -> None:
    """Keeps one model file, without weights: those come from the universal format."""
    files = sorted(output.glob("*_model_states.pt"))
    state = _load(files[0]) | {"module": {}}
    for file in files:
        file.unlink()
    prefix = "zero_pp_rank_0_" if zero_stage == 3 else ""
    torch.save(state, output / f"{prefix}mp_rank_00_model_states.pt")


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m vlm2vec.training.checkpoints.universal",
        description="Converts the engine's state in a checkpoint to the form that other ranks and ZeRO stages load. A "
        "resume on different ranks runs this program itself.",
        examples=("python -m vlm2vec.training.checkpoints.universal RUN/checkpoint-100/engine CONVERTED 3",),
    )
    made.add_argument("source", type=Path, help="Folder of the engine's state in a checkpoint.")
    made.add_argument("output", type=Path, help="Folder to make.")
    made.add_argument("zero_stage", type=int, choices=(1, 2, 3), help="ZeRO stage of the engine that will load it.")
    return made


def main() -> None:
    """Converts from the command line."""
    options = parser().parse_args()
    convert(options.source, options.output, options.zero_stage)


if __name__ == "__main__":
    sys.exit(run_program(main))
