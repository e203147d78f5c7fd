"""The entry of a training run: parse, build, train, close.

deepspeed --module vlm2vec.train --deepspeed ds_configs/zero2.json --config launch/recipes/mini.yaml [flags]
"""

from __future__ import annotations

import os
import sys
from contextlib import closing

from vlm2vec.training.modes import parse_modes

if __name__ == "__main__":
    modes, words = parse_modes(sys.argv[1:])
    is_first = os.environ.get("RANK", "0") == "0"
    if not modes and {"-h", "--help"} & {*words}:
        # Printed before the import of torch, which takes seconds, and once, however many ranks a launcher starts.
        from vlm2vec.training.flags.parser import parser as training_parser

        if is_first:
            training_parser().print_help()
        sys.exit()
    if is_first and not modes:
        # The imports take seconds on an idle machine, a minute on a busy one.
        print("starting: importing torch, transformers and DeepSpeed", flush=True)

import torch
import torch.distributed as dist

from vlm2vec.device import choose_accelerator
from vlm2vec.errors import InputError, run_program
from vlm2vec.plan.model_flops import model_flops
from vlm2vec.ranks import close_ranks, initialize_ranks
from vlm2vec.training.end import end_process
from vlm2vec.training.flags.config_file import config_text
from vlm2vec.training.flags.run import RunArguments, parse_arguments
from vlm2vec.training.loop import train
from vlm2vec.training.run import Parts, Run
from vlm2vec.training.start import agree_on_start, settings_without_ranks
from vlm2vec.training.stop import EXIT_STOPPED
from vlm2vec.training.watch.clock import StepClock
from vlm2vec.training.watch.run_watch import RunWatch

PARTS = Parts(model_flops)


def main(parts: Parts = PARTS) -> int:
    """Runs one training from the command line, or prints its plan or its configuration."""
    modes, words = parse_modes(sys.argv[1:])
    if modes:
        if os.environ.get("RANK", "0") == "0":
            print_instead(modes, words)
        return 0
    try:
        arguments = parse_arguments(words)
    except InputError as error:
        error.is_reported = os.environ.get("LOCAL_RANK", "0") != "0"  # a node's ranks have the same command line
        raise
    try:
        device = initialize_ranks(arguments.training.collective_timeout)
        code = run(arguments, device, parts)
    except BaseException as error:
        end_process(error)
    close_ranks()
    return code


def print_instead(modes: set[str], words: list[str]) -> None:
    """Prints what a mode asks for; needs neither ranks nor an accelerator.

    Raises:
        InputError: Two modes are given, or a flag that a run would refuse too.
    """
    if len(modes) > 1:
        raise InputError(f"--{' and --'.join(sorted(modes))} exclude each other: give only one")
    if "dry_run" in modes:
        from vlm2vec.plan import run_plan

        run_plan.main(words)
        return
    arguments = parse_arguments(words)
    choose_accelerator()
    print(config_text(settings_without_ranks(arguments, int(os.environ.get("WORLD_SIZE", "1")))), end="")


def run(arguments: RunArguments, device: torch.device, parts: Parts = PARTS) -> int:
    """Builds everything and trains; all ranks call it.

    Returns:
        The exit code: 0, or `EXIT_STOPPED` if a signal stopped the run before its end.
    """
    training = arguments.training
    with (
        parts.heartbeat(training.step_timeout, training.collective_timeout) as heartbeat,
        closing(RunWatch(heartbeat, StepClock(device))) as watch,
    ):
        start = agree_on_start(arguments, device, watch)
        if start.is_over:  # so that a loop of restarts ends
            if dist.get_rank() == 0:
                print(*start.point.remarks(start.settings.schedule.max_steps))
            return 0
        is_done = train(Run.build(start, watch, parts))
    return 0 if is_done else EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(run_program(main))
