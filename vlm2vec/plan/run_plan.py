"""Estimates a run before it is queued: memory per rank; traffic, FLOPs and time per step.

    python -m vlm2vec.plan --config RECIPE.yaml --deepspeed ds_configs/zero2.json --gpus 8 --nodes 2 --gpu_memory 80

Needs neither weights, nor an accelerator, nor a network. All flags of vlm2vec.train are taken too. --model_name is a
local folder (its JSON files are enough) or a published model whose configuration comes with this package; without the
flag, the model that the recipes train.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from vlm2vec.backbones.checkpoint import CONFIG_FILE
from vlm2vec.backbones.interface import ItemProcessor
from vlm2vec.backbones.registry import DEFAULT_MODEL, family_of_folder, published_config
from vlm2vec.device import choose_accelerator
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import shorten
from vlm2vec.images.decode import check_size
from vlm2vec.messages.command_line import Parser
from vlm2vec.messages.terminal import open_console, print_table
from vlm2vec.plan.assumptions import Hardware, Workload
from vlm2vec.plan.estimate import GIB, RunPlan
from vlm2vec.plan.meta import MetaModel
from vlm2vec.plan.states import ZeroSettings
from vlm2vec.plan.tables import tables
from vlm2vec.training.encoder import settings_in_use
from vlm2vec.training.flags.engine_file import read_engine_file
from vlm2vec.training.flags.run import RunArguments, parse_arguments

# Values for flags that training requires and a plan does not need.
_ABSENT = ("--model_name", DEFAULT_MODEL, "--dataset_name", "-", "--output_dir", "-")
_SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})", re.ASCII)
_GIGA, _TERA = 1e9, 1e12
_POSITIVE = (
    *("gpus", "nodes", "gpu_memory", "peak_tflops", "gpu_bandwidth", "node_bandwidth"),
    *("text_tokens", "images_per_item", "hard_negatives_per_row"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the plan of a run."""
    plan = read_plan(list(sys.argv[1:] if argv is None else argv))
    console = open_console()
    for part in tables(plan):
        if isinstance(part, Table):
            print_table(console, part)
        else:
            console.print(part)


def read_plan(argv: Sequence[str]) -> RunPlan:
    """The plan that a command line asks for.

    Raises:
        InputError: A flag or a file is refused.
    """
    cluster, workload, arguments = parse_plan(argv)
    return make_plan(arguments, cluster, workload)


def parse_plan(argv: Sequence[str]) -> tuple[Hardware, Workload, RunArguments]:
    """The plan's own flags, and those of the training program.

    Raises:
        InputError: A flag or a file is refused.
    """
    own = parser()
    cluster, workload, rest = parse_cluster(argv, own)
    return cluster, workload, parse_arguments(rest, _ABSENT, also_known=own._option_string_actions)


def parser() -> Parser:
    """The plan's own part of the command line."""
    made = Parser(
        prog="python -m vlm2vec.plan",
        usage=f"{Parser.commands.get('vlm2vec.plan', 'python -m vlm2vec.plan')} --config FILE --deepspeed FILE "
        "[options] [flags of vlm2vec.train]",
        description="Prints what a run will take before it is started: memory of a rank, traffic, FLOPs and time of a "
        "step. Needs neither weights, nor an accelerator, nor a network.\n\nTakes all flags of vlm2vec.train too. "
        "--model_name is a local folder, of which the JSON files are enough, or a published model whose configuration "
        "comes with this package; without the flag, the model that the recipes train.",
        examples=(
            "python -m vlm2vec.plan --config launch/recipes/lora_1024.yaml --deepspeed ds_configs/zero2.json --gpus 8 "
            "--nodes 2 --gpu_memory 80",
        ),
    )
    cluster = made.add_argument_group("Cluster", "The machines of the run.").add_argument
    cluster("--gpus", type=int, default=8, help="GPUs per node; one rank runs on each.")
    cluster("--nodes", type=int, default=1, help="Number of nodes.")
    cluster("--gpu_memory", type=float, default=80, metavar="GIB", help="Memory of a GPU, in GiB.")
    cluster(
        "--peak_tflops", type=float, default=989, help="Peak TFLOP/s of a GPU; the default is an H100's in bfloat16."
    )
    cluster("--utilization", type=float, default=0.4, help="Fraction of the peak that is assumed to be reached.")
    cluster(
        "--gpu_bandwidth",
        type=float,
        default=450,
        help="GB/s between the GPUs of a node, each way; the default is an H100's NVLink.",
    )
    cluster(
        "--node_bandwidth",
        type=float,
        default=50,
        help="GB/s between nodes, each way; the default is one link of 400 Gbit/s.",
    )
    items = made.add_argument_group("Items", "The data that are assumed.").add_argument
    items("--images_per_pair", type=float, default=1.0, help="Number of items of a pair that have an image, 0 to 2.")
    items(
        "--image_size",
        metavar="WIDTHxHEIGHT",
        help="Size of every image in pixels. If not given: the model family's own, as large as its images get.",
    )
    items("--images_per_item", type=int, default=1, help="Number of images of an item that has any.")
    items(
        "--hard_negatives_per_row",
        type=int,
        default=1,
        help="Hard negatives that the data have per row, used with --hard_negatives true.",
    )
    items("--text_tokens", type=int, default=40, help="Tokens in the text of an item.")
    return made


def parse_cluster(argv: Sequence[str], own: Parser | None = None) -> tuple[Hardware, Workload, list[str]]:
    """Parses the plan's flags; the remaining words are flags of the training program.

    Raises:
        InputError: A value is out of range.
    """
    options, rest = (own or parser()).parse_known_args(argv)
    for name in _POSITIVE:
        if getattr(options, name) <= 0:
            raise InputError(f"--{name} {getattr(options, name)}: must be positive")
    if not 0 <= options.images_per_pair <= 2:
        raise InputError(f"--images_per_pair {options.images_per_pair}: a pair has 0 to 2 images")
    if options.images_per_item > 1 and options.images_per_pair == 0:
        raise InputError(f"--images_per_item {options.images_per_item}: has no effect with --images_per_pair 0")
    if not 0 < options.utilization <= 1:
        raise InputError(f"--utilization {options.utilization}: must be above 0 and at most 1")
    cluster = Hardware(
        gpus=options.gpus,
        nodes=options.nodes,
        gpu_memory=options.gpu_memory * GIB,
        peak_flops=options.peak_tflops * _TERA,
        utilization=options.utilization,
        gpu_bandwidth=options.gpu_bandwidth * _GIGA,
        node_bandwidth=options.node_bandwidth * _GIGA,
    )
    workload = Workload(
        options.images_per_pair,
        options.text_tokens,
        _image_size(options.image_size),
        options.images_per_item,
        options.hard_negatives_per_row,
    )
    return cluster, workload, rest


def _image_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InputError(f"--image_size {shorten(text)}: must be WIDTHxHEIGHT in pixels, such as 640x480")
    width, height = (int(each) for each in found.groups())
    check_size(width, height, f"--image_size {text}")
    return width, height


def make_plan(arguments: RunArguments, cluster: Hardware, workload: Workload) -> RunPlan:
    """The plan of a run.

    Raises:
        InputError: The model folder or the engine configuration cannot be read.
    """
    folder = Path(arguments.model.model_name)
    if not (folder / CONFIG_FILE).is_file():
        folder = published_config(arguments.model.model_name)
    family = family_of_folder(folder)
    config = family.backbone.load_config(folder, {})
    choose_accelerator()
    settings = arguments.resolve(cluster.num_ranks, read_engine_file(Path(arguments.training.deepspeed)))
    if workload.hard_negatives_per_row > 1 and not settings.data.hard_negatives:
        raise InputError(
            f"--hard_negatives_per_row {workload.hard_negatives_per_row}: has no effect without --hard_negatives true"
        )
    used, _ = settings_in_use(settings.encoder, folder, family)
    limits = {**family.stored_limits(folder), **used.image_limits}
    # A published name implies the prompt format, and with it the image sizes, as a folder of that name does.
    prompt_format = used.prompt_format or family.known_format(Path(arguments.model.model_name))
    processor = family.processor.without_tokenizer(config, prompt_format, **limits)
    if workload.image_size is not None:
        _check_cut(processor, *workload.image_size)
    zero = ZeroSettings.read(settings.engine.file["zero_optimization"])
    return RunPlan(MetaModel(config, settings.encoder, processor), settings, zero, cluster, workload)


def _check_cut(processor: ItemProcessor, width: int, height: int) -> None:
    try:
        processor.num_image_tokens(width, height)
    except InputError as error:
        raise InputError(f"--image_size {width}x{height}: {error}") from error
