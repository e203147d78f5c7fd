"""The exactness grid: compares cached steps on several ranks with one plain graph over the same global batch.

The program is one rank: `python -m trials.exactness --cells CELLS.json --output ERRORS.json`.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from trials.exactness_grid import BATCHES, CHUNKS, KIT, KIT_BATCH, TEMPERATURE, TOLERANCE, Cell
from trials.exactness_reference import (
    KIT_DISTILLATION,
    KIT_NEGATIVES,
    KIT_TEMPERATURES,
    PlainGraph,
    RankBatch,
    build_encoder,
    kit_gradient,
    padding_chunk,
    plain_gradient,
    rank_batch,
    textbook_gradient,
)
from trials.rig.engines import build_engine
from trials.rig.patience import COLLECTIVE_SECONDS
from trials.rig.tiny import tiny_items
from vlm2vec.backbones.interface import Backbone
from vlm2vec.batches import ChunkSizes
from vlm2vec.compiling import compile_layers
from vlm2vec.contrastive import (
    CachedStep,
    ContrastiveLoss,
    LearnedTemperature,
)
from vlm2vec.dora import kept_norms
from vlm2vec.errors import run_program
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.ranks import close_ranks, initialize_ranks


def kit_loss(device: torch.device) -> tuple[ContrastiveLoss, LearnedTemperature]:
    """The loss with all options, computed in blocks, and its temperatures."""
    learned = LearnedTemperature(device=device, groups=[str(number) for number in range(len(KIT_TEMPERATURES))])
    with torch.no_grad():
        learned.log_temperature.copy_(torch.tensor(KIT_TEMPERATURES).log())
    options: dict[str, Any] = {"negatives": KIT_NEGATIVES, "distillation": KIT_DISTILLATION}
    return ContrastiveLoss(learned, True, 3, bidirectional=True, **options), learned


class RecordingStep(CachedStep):
    """Records every engine call's result, to compare the passes bit for bit."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.results: list[Tensor] = []
        self.second_pass = 0
        self.of_representations = torch.empty(0)

    def build_cache(self, *arguments: Any) -> Any:
        """Computes the loss, and records its gradient with respect to this rank's representations."""
        (repeated, kept), output = super().build_cache(*arguments)
        self.of_representations = torch.cat([repeated, *kept])
        return (repeated, kept), output

    def forward_backward(self, *arguments: Any) -> None:
        """Runs pass 2, and records where its results begin."""
        self.second_pass = len(self.results)
        super().forward_backward(*arguments)

    def model_call(self, model: nn.Module, model_input: dict[str, Any]) -> Tensor:
        """Calls the engine and keeps a copy of the result."""
        result = super().model_call(model, model_input)
        self.results.append(result.detach().clone())
        return result

    def passes_differ(self, batch: RankBatch) -> bool:
        """Whether pass 2 gave different representations from pass 1; with dropout both run the same chunks."""
        count = batch.chunks.repeat.num_chunks
        first, second = self.results[:count], self.results[self.second_pass : self.second_pass + count]
        return not all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@contextmanager
def cuda_autocast(is_enabled: bool) -> Iterator[None]:
    """Sets CUDA's autocast flag, which DeepSpeed reads on every device; an engine then switches autocast off."""
    torch.set_autocast_enabled("cuda", is_enabled)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def count_calls(module: nn.Module) -> Counter[nn.Module]:
    """Counts how often each submodule runs from now on, including recomputation in the backward pass."""
    calls: Counter[nn.Module] = Counter()
    module.register_forward_pre_hook(lambda called, _: calls.update([called]))
    return calls


class Recomputation:
    """Whether gradient checkpointing runs layers again: in the decoder, and in the vision tower if it is trained.

    The first part of the first layer is counted, because hooks of the layer itself are not run again.
    """

    def __init__(self, base: Backbone) -> None:
        of_images = {module for part in base.vision_modules() for module in part.modules()}
        layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
        self._decoder = count_calls(next(next(each for each in layers if each not in of_images).children()))
        tower = base.vision_modules()[0]
        is_trained = any(parameter.requires_grad for parameter in tower.parameters())
        in_tower = next(next(each for each in layers if each in of_images).children())
        self._towers = [(count_calls(tower), count_calls(in_tower))] if is_trained else []

    def clear(self) -> None:
        """Starts counting."""
        for counted in (self._decoder, *(each for pair in self._towers for each in pair)):
            counted.clear()

    def is_missing(self, num_calls: int) -> bool:
        """Whether a part was not run again, given the number of calls of the model."""
        tower_ran_once = any(once.total() == inner.total() > 0 for once, inner in self._towers)
        return tower_ran_once or self._decoder.total() == num_calls


def relative_error(engine: Any, expected: dict[str, Tensor]) -> float:
    """The relative error of the gradient with which the engine is about to step."""
    from deepspeed.utils import safe_get_full_grad

    error = norm = torch.zeros(())
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            error = error + (safe_get_full_grad(parameter) - expected[name]).square().sum()
            norm = norm + expected[name].square().sum()
    return float((error / norm).sqrt())


def temperatures_error(learned: LearnedTemperature, expected: Tensor) -> float:
    """The relative error of the temperatures' gradient, summed over the ranks."""
    found = learned.log_temperature.grad
    assert found is not None
    dist.all_reduce(found)
    return float((found - expected).norm() / expected.norm())


def run_cells(cells: Sequence[Cell], device: torch.device) -> Iterator[float]:
    """The relative error of every cell on a device.

    It is infinite if dropout was not replayed bit for bit, or if gradient checkpointing ran no layer again. With
    bfloat16 on a CPU also if the gradient of the representations is out of `TOLERANCE`: the loss is in float32, even
    where the cell's bound leaves room for bfloat16.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    seed = 100 + rank

    def setting(cell: Cell) -> tuple[str, int, str, float]:
        return cell.family, cell.stage, cell.kind, cell.dropout

    for (family, stage, kind, dropout), group in itertools.groupby(cells, setting):
        made = tiny_items(family)
        encoder = build_encoder(kind, dropout, family).to(device)
        reference = copy.deepcopy(encoder)
        if "checkpointed" in kind:
            encoder.gradient_checkpointing_enable()
        recomputation = Recomputation(encoder.base)
        if "compiled" in kind:
            compile_layers(encoder, "aot_eager" if device.type == "cpu" else "inductor")
        engine = build_engine(encoder, stage)
        for cell in group:
            sizes = CHUNKS[cell.chunks]
            if dropout:
                sizes = ChunkSizes(sizes.packing, None, sizes.keep_graphs)
            batch = rank_batch(BATCHES.get(cell.batch, KIT_BATCH), sizes, rank, ranks, made)
            loss_fn, learned = ContrastiveLoss(TEMPERATURE, block_rows=3), None
            if cell.batch == KIT:
                loss_fn, learned = kit_loss(device)
            torch.manual_seed(seed)
            recomputation.clear()
            step = RecordingStep(engine, loss_fn, padding_chunk(made))
            with kept_norms(engine), cuda_autocast(device.type == "cpu" and cell.is_bf16):
                step.cache_step(batch.chunks, batch.layout)
            error_of_loss = 0.0
            if learned is not None:
                expected, of_temperatures = kit_gradient(reference, batch, made)
                error_of_loss = temperatures_error(learned, of_temperatures)
            elif cell.has_textbook_reference:
                expected = textbook_gradient(reference, batch, made)
            elif cell.is_bf16:
                graph = PlainGraph.of(reference, batch, seed, made)
                expected, error_of_loss = graph.gradient_given(step.of_representations)
            else:
                expected = plain_gradient(reference, batch, seed, made)
            error = max(relative_error(engine, expected), error_of_loss)
            engine.step()
            is_wrong = dropout > 0 and step.passes_differ(batch)
            is_wrong |= cell.is_bf16 and device.type == "cpu" and error_of_loss > TOLERANCE
            is_wrong |= "checkpointed" in kind and recomputation.is_missing(len(step.results))
            num_wrong = torch.tensor(float(is_wrong), device=device)
            dist.all_reduce(num_wrong)
            yield float("inf") if num_wrong else error
        engine.destroy()


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m trials.exactness",
        description=first_line(__doc__),
        examples=("python -m trials.exactness --cells cells.json --output errors.json",),
    )
    made.add_argument("--cells", type=Path, required=True, metavar="FILE", help="JSON file with the cells of the grid.")
    made.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON file to write.")
    return made


def main() -> None:
    """Runs the cells as one rank."""
    options = parser().parse_args()
    device = initialize_ranks(COLLECTIVE_SECONDS)
    cells = [Cell(**each) for each in json.loads(options.cells.read_text())]
    errors = []
    for cell, error in zip(cells, run_cells(cells, device), strict=True):
        errors.append({**asdict(cell), "error": error})
        if dist.get_rank() == 0:
            print(json.dumps(errors[-1]), flush=True)
    if dist.get_rank() == 0:
        options.output.write_text(json.dumps(errors))
    close_ranks()


if __name__ == "__main__":
    sys.exit(run_program(main))
