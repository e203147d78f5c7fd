"""Compares the plan's memory with that of engines of every shipped configuration, on two ranks; prints a table.

python -m trials.plan_error --model_name demo/untrained
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from trials.plan_error_rank import Measured, settings, settings_of
from trials.rig.forked import run_ranks
from vlm2vec.backbones.phi3_v import Phi3VProcessor
from vlm2vec.backbones.phi3_v.checkpoint import load_config
from vlm2vec.device import choose_accelerator
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.plan.meta import MetaModel
from vlm2vec.plan.passes import ChunkShape
from vlm2vec.plan.states import ZeroSettings, state_memory

RANKS = 2
PATIENCE = 1200  # seconds, against hangs


def measure(model: Path, folder: Path) -> list[Measured]:
    """Starts the ranks; returns what rank 0 measured."""
    output = folder / "measured.json"
    worker = ["-m", "trials.plan_error_rank", "--model_name", str(model), "--output", str(output)]
    run_ranks(RANKS, worker, folder, timeout=PATIENCE)
    return [Measured(**each) for each in json.loads(output.read_text())]


def planned(measured: Sequence[Measured], model: Path, folder: Path) -> Iterator[tuple[int, int]]:
    """The plan's bytes at rest and at the peak, for each measurement.

    It runs in a process without ZeRO-3, as the plan program does, because ZeRO-3 replaces torch's linear layer.
    """
    models: dict[str, MetaModel] = {}
    for each in measured:
        path = settings(each.engine, folder, "plan")
        encoder = settings_of(each.kind, model, path).encoder
        if each.kind not in models:
            config = load_config(model, {})
            models[each.kind] = MetaModel(config, encoder, Phi3VProcessor.without_tokenizer(config, num_crops=4))
        meta = models[each.kind]
        zero = ZeroSettings.read(json.loads(path.read_text())["zero_optimization"])
        state = state_memory(meta.size(), zero, RANKS)
        largest = ChunkShape(*each.shape, (meta.processor.largest_image_size,))
        cost = meta.cost(largest, True, encoder.gradient_checkpointing)
        yield int(state.at_rest + cost.pixels), int(state.in_pass + state.host + cost.peak)


def table(measured: Sequence[Measured], plans: Sequence[tuple[int, int]]) -> Iterator[str]:
    """The table in Markdown; sizes are in KiB."""
    yield "| engine | trained | at rest: plan | measured | error | peak in a chunk: plan | measured | error |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for each, (at_rest, peak) in zip(measured, plans, strict=True):
        cells = [each.engine, each.kind]
        for plan, found in ((at_rest, each.at_rest), (peak, each.peak)):
            cells += [f"{plan / 1024:,.0f}", f"{found / 1024:,.0f}", f"{plan / found - 1:+.1%}"]
        yield "| " + " | ".join(cells) + " |"


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m trials.plan_error",
        description=first_line(__doc__),
        examples=("python -m trials.plan_error --model_name demo/untrained",),
    )
    made.add_argument("--model_name", type=Path, required=True, metavar="DIR", help="Folder of a small model.")
    return made


def main() -> None:
    """Parses the command line, prints the table."""
    model = parser().parse_args().model_name
    choose_accelerator()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(model, Path(folder))
        print("\n".join(table(measured, list(planned(measured, model, Path(folder))))))


if __name__ == "__main__":
    sys.exit(run_program(main))
