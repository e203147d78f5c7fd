"""python -m vlm2vec.export CHECKPOINT OUT: from a checkpoint of ZeRO ranks to a Hugging Face folder, and to the Hub."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from vlm2vec.messages.progress import announce_imports

if __name__ == "__main__":
    announce_imports()

import torch
from transformers.utils.logging import disable_progress_bar

from vlm2vec.errors import InputError, run_program
from vlm2vec.export.folder import DEFAULT_SHARD_SIZE, export
from vlm2vec.export.hub import HubTarget, local_base, log_in, push, refuse_unexported
from vlm2vec.messages.command_line import Parser
from vlm2vec.messages.old_names import EXPORT
from vlm2vec.training.checkpoints.writer import find_checkpoint

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def parser() -> Parser:
    """The command line."""
    made = Parser(
        old_names=EXPORT,
        prog="python -m vlm2vec.export",
        description="Exports a checkpoint of ZeRO ranks to a Hugging Face folder, which VLM2Vec and "
        "sentence-transformers load, and uploads it to the Hugging Face Hub if asked to.",
        examples=(
            "python -m vlm2vec.export demo/run demo/exported --check",
            "python -m vlm2vec.export RUN/checkpoint-1000 EXPORTED --merge_lora --dtype bf16 --push_to_hub USER/MODEL "
            "--private",
        ),
    )
    made.add_argument(
        "checkpoint",
        type=Path,
        help="Checkpoint, or a run's folder (its latest checkpoint). Without OUTPUT: an exported folder to upload.",
    )
    made.add_argument("output", type=Path, nargs="?", help="Folder to make; it must not exist, or be empty.")
    export_group = made.add_argument_group("Export", "What is written into the folder.")
    export_group.add_argument(
        "--dtype", choices=sorted(DTYPES), help="Precision of the weights. If not given: the run's compute dtype."
    )
    export_group.add_argument("--merge_lora", action="store_true", help="Add the adapter to the weights of its base.")
    export_group.add_argument(
        "--max_shard_size",
        metavar="SIZE",
        help=f"Size limit of a weight file, such as 500MB; memory stays below three times this. If not given: "
        f"{DEFAULT_SHARD_SIZE}.",
    )
    export_group.add_argument(
        "--base_model",
        metavar="DIR|NAME",
        help="The run's base model, if it has moved. An adapter then names this one.",
    )
    export_group.add_argument(
        "--scores",
        type=Path,
        metavar="DIR",
        help="Folder that eval.mmeb wrote, whose scores go into the model card.",
    )
    export_group.add_argument(
        "--check",
        action="store_true",
        help="Compare the embeddings of checkpoint and folder on a few items. Holds both models in memory.",
    )
    hub = made.add_argument_group("Upload", "Upload of the finished folder to the Hugging Face Hub.")
    hub.add_argument(
        "--push_to_hub",
        metavar="NAME",
        help="Upload the finished folder to this repository, NAMESPACE/NAME or NAME. The token is that of `hf auth "
        "login`, or HF_TOKEN.",
    )
    hub.add_argument("--private", action="store_true", help="Make the repository private if it does not exist.")
    hub.add_argument("--hub_revision", metavar="BRANCH", help="Branch to upload to. If not given: main.")
    return made


def read_target(options: argparse.Namespace) -> HubTarget | None:
    """Where to upload to, if anywhere.

    Raises:
        InputError: A bad name, or an option without effect.
    """
    if options.push_to_hub is not None:
        return HubTarget(options.push_to_hub, options.private, options.hub_revision)
    for name in ("private", "hub_revision"):
        if getattr(options, name):
            raise InputError(f"--{name}: has no effect without --push_to_hub NAME")
    return None


def refuse_export_flags(options: argparse.Namespace) -> None:
    """Of a folder that is exported already, nothing but its place on the Hub can be chosen.

    Raises:
        InputError: No folder to make, or an option without effect.
    """
    if options.push_to_hub is None:
        raise InputError(
            f"no folder to make: python -m vlm2vec.export {options.checkpoint} OUTPUT; to upload a folder that is "
            "exported already: --push_to_hub NAME"
        )
    for name in ("dtype", "merge_lora", "max_shard_size", "base_model", "scores", "check"):
        if getattr(options, name):
            raise InputError(
                f"--{name}: has no effect on a folder that is exported already; leave it out, or give a checkpoint and "
                "the folder to make"
            )


def main() -> None:
    """Exports, uploads, or both, from the command line."""
    options = parser().parse_args()
    target = read_target(options)
    if options.output is None:
        refuse_export_flags(options)
        refuse_unexported(options.checkpoint)
    if target is not None:
        target = log_in(target)  # before an export, which may take minutes
    if options.output is not None:
        run_export(options)
    if target is not None:
        upload(options.output or options.checkpoint, target)


def run_export(options: argparse.Namespace) -> None:
    """Makes the folder."""
    disable_progress_bar()  # of loading, during the check; the writing of files has one
    warnings.filterwarnings("ignore", category=FutureWarning)  # between transformers, PEFT and torch
    warnings.filterwarnings("ignore", message="The PEFT config's `base_model_name_or_path`")  # --base_model says so
    checkpoint = find_checkpoint(options.checkpoint)
    done, checked = export(
        checkpoint,
        options.output,
        DTYPES.get(options.dtype),
        options.merge_lora,
        max_shard_size=options.max_shard_size or DEFAULT_SHARD_SIZE,
        base_model=options.base_model,
        scores=options.scores,
        check=options.check,
    )
    print(f"exported {checkpoint} to {options.output}: {done}")
    if checked is not None:
        print(checked)


def upload(folder: Path, target: HubTarget) -> None:
    """Uploads the folder."""
    base = local_base(folder)
    if base is not None:
        print(
            f"warning: {folder}/adapter_config.json names a folder of this machine as its base, {base}: others cannot "
            "load the adapter; export with --base_model REPOSITORY",
            file=sys.stderr,
        )
    print(f"uploaded {folder} to {push(folder, target)}")


if __name__ == "__main__":
    sys.exit(run_program(main))
