"""The exactness grid: compares cached steps on several ranks with one plain graph over the same global batch.

The program is one rank: `python -m trials.exactness --cells CELLS.json --output ERRORS.json`.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from trials.rig.engines import build_engine
from trials.rig.items import Items
from trials.rig.naive_loss import naive_loss
from trials.rig.patience import COLLECTIVE_SECONDS
from trials.rig.tiny import FAMILIES, PHI3_V, tiny_items, tiny_model
from vlm2vec.backbones.interface import Backbone, ProcessedItem
from vlm2vec.batches import ChunkSizes
from vlm2vec.batches.step_plan import end_to_end_positions
from vlm2vec.choices import LoraSettings
from vlm2vec.compiling import compile_layers
from vlm2vec.contrastive import (
    CachedStep,
    Chunk,
    ContrastiveLoss,
    Distillation,
    LearnedTemperature,
    Negatives,
    Pairs,
    Phase,
    StepChunks,
    StepLayout,
)
from vlm2vec.contrastive.gather import gather_rows
from vlm2vec.contrastive.slots import agree_on_slots
from vlm2vec.dora import kept_norms
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import run_program
from vlm2vec.inputs.packing import FixedCounts, TokenBudget
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.ranks import close_ranks, initialize_ranks

TOLERANCE = 1e-6  # relative: norm of the gradient's error over the gradient's norm
# Where bfloat16 adds the same numbers in a different order.
BF16_TOLERANCE = 2.0**-8
# Where bfloat16 adds them in the same order; seen: 5e-8 with kernels for bfloat16. With those of AVX2 up to 7.1e-4 was
# seen, which is not explained (docs/log.md).
BF16_SAME_ORDER_TOLERANCE = 1e-4
TEMPERATURE = 0.05
PAIRS = 10
DROPOUT = 0.1


@dataclass(frozen=True)
class Batch:
    """A kind of global batch: which items have images, and which rank encodes an item.

    Items are numbered in the order queries, targets, hard negatives.

    Attributes:
        query_has_image: Whether the query of a row has an image.
        owner: The rank of an item, from its number and the number of ranks.
        target_images: Whether the targets of every fifth row have images, if the row's query has one.
        negative_rows: The row of each hard negative.
        has_kit: Whether all options of the loss are used: weights, masks, temperatures of groups, a teacher.
    """

    query_has_image: Callable[[int], bool]
    owner: Callable[[int, int], int]
    target_images: bool = True
    negative_rows: tuple[int, ...] = ()
    has_kit: bool = False


BATCHES = {
    # On up to four ranks, every rank has images and texts.
    "mixed": Batch(lambda row: row % 4 < 2, lambda item, ranks: item % ranks),
    "text only on some ranks": Batch(lambda row: True, lambda item, ranks: 0 if item < PAIRS else item % ranks, False),
    "images on one rank only": Batch(
        lambda row: row % 2 == 0, lambda item, ranks: 0 if item < PAIRS else ranks - 1, False
    ),
    "duplicates across ranks": Batch(lambda row: row % 3 == 0, lambda item, ranks: (item * 7) % ranks),
    "hard negatives": Batch(lambda row: row % 2 == 1, lambda item, ranks: (item // 3) % ranks, negative_rows=(2, 5, 9)),
    "one item on a rank": Batch(lambda row: row % 3 == 0, lambda item, ranks: 0 if item else ranks - 1),
    "a rank without items": Batch(lambda row: True, lambda item, ranks: 0),
    # Runs after batches with images: nothing of their gradient may remain in the vision tower's gradient.
    "no images": Batch(lambda row: False, lambda item, ranks: item % ranks),
}
# In separate cells, because the loss treats it the same whatever is trained.
KIT = "loss kit"
KIT_BATCH = Batch(BATCHES["mixed"].query_has_image, BATCHES["mixed"].owner, True, (0, 2, 2, 2, 5, 5, 9), has_kit=True)
KIT_NEGATIVES = Negatives(hardness_weight=9.0, similarity=0.4, margin=-0.6)
KIT_DISTILLATION = Distillation(weight=0.5, temperature=0.1)
KIT_TEMPERATURES = (0.05, 0.1, 0.2)
EXTREMES = ("one item on a rank", "a rank without items", "no images")
# Pass 1 merges chunks only without dropout.
CHUNKS = {
    "one item": ChunkSizes(FixedCounts(1, 1)),
    "ragged": ChunkSizes(TokenBudget(70), no_grad_tokens=200, keep_graphs=1),
    "whole batch": ChunkSizes(TokenBudget(10**6), keep_graphs=2),
}
# "bf16": float32 adapters on a bfloat16 base, under autocast. "adapter dropout": dropout on the adapter's input only.
# "checkpointed": gradient checkpointing, compared with the plain graph without it.
# "compiled", which is in no grid: compiled elementwise operators, compared with the uncompiled plain graph.
PLAIN_KINDS = ("full", "lora", "dora")
CHECKPOINTED_KINDS = ("full checkpointed", "dora checkpointed")
KINDS = (*PLAIN_KINDS, "dora adapter dropout", "lora bf16", "dora bf16", "lora checkpointed", "dora checkpointed")
VARIANT_BATCHES = ("mixed", "text only on some ranks")


@dataclass(frozen=True)
class Cell:
    """One cell of the grid, for a given number of ranks."""

    stage: int
    kind: str
    dropout: float
    batch: str
    chunks: str
    family: str = PHI3_V

    @property
    def has_textbook_reference(self) -> bool:
        """Whether the reference is one chunk on one rank: only where results do not depend on the chunks."""
        return not self.dropout and "bf16" not in self.kind

    @property
    def tolerance(self) -> float:
        """The largest relative error allowed.

        With bfloat16, a chunk's result depends on its shape, and without dropout pass 1 has larger ragged chunks.
        ZeRO-3's hooks change the order in which autograd adds the gradients of a tensor that several layers read, which
        PEFT's LoRA layers make of each input; our DoRA layers add them themselves. Otherwise only float32 rounding
        differs, which occasionally rounds to a different bfloat16 number.
        """
        if "bf16" not in self.kind:
            return TOLERANCE
        same_chunks = self.dropout > 0 or self.chunks != "ragged"
        same_order = self.stage < 3 or self.kind.startswith("dora")
        return BF16_SAME_ORDER_TOLERANCE if same_chunks and same_order else BF16_TOLERANCE


def full_grid() -> list[Cell]:
    """Every combination except the extreme batches, which the test suite runs; for variants two kinds of batches."""
    batches = [name for name in BATCHES if name not in EXTREMES]
    return [
        Cell(*each)
        for each in itertools.product((1, 2, 3), KINDS, (0.0, DROPOUT), batches, CHUNKS)
        if each[1] in PLAIN_KINDS or each[3] in VARIANT_BATCHES
    ] + [Cell(stage, kind, 0.0, KIT, chunks) for stage in (1, 2, 3) for kind in PLAIN_KINDS for chunks in CHUNKS]


def family_grid(family: str) -> list[Cell]:
    """The cells that depend on the model: ZeRO-2 and 3, trained parts, checkpointing, ranks with and without images.

    The cached step does not depend on the family, so its use of chunks is covered by `full_grid`.
    """
    settings = [(kind, 0.0, chunks) for kind in PLAIN_KINDS for chunks in CHUNKS]
    settings += [(kind, DROPOUT, "ragged") for kind in (*PLAIN_KINDS, *CHECKPOINTED_KINDS)]
    return [
        Cell(stage, kind, dropout, batch, chunks, family)
        for stage, (kind, dropout, chunks), batch in itertools.product((2, 3), settings, VARIANT_BATCHES)
    ]


def grid_of(families: Sequence[str] = FAMILIES) -> list[Cell]:
    """The cells of some families; Phi-3-V gets the full grid."""
    return [cell for each in families for cell in (full_grid() if each == PHI3_V else family_grid(each))]


def build_encoder(kind: str, dropout: float, family: str = PHI3_V) -> VLM2Vec:
    """Builds a tiny encoder. Adapters get a nonzero B, because a zero B would hide half of the gradient.

    The adapter's scale is moderate: with the default of 16 the plain graph itself differs from float64 by 4e-6.
    """
    full = kind.startswith("full")
    encoder = VLM2Vec(tiny_model(0, dropout if full else 0.0, family), processor=None, max_len=None)  # type: ignore[arg-type]
    if not full:
        encoder.to(torch.bfloat16 if "bf16" in kind else torch.float32)
        dropout_on = "adapter" if "adapter dropout" in kind else "input"
        settings = LoraSettings(r=4, alpha=4, dropout=dropout, dropout_on=dropout_on, use_dora="dora" in kind)
        encoder.add_lora(settings)
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    return encoder.train()


TINY = tiny_items()


@dataclass(frozen=True)
class RankBatch:
    """A global batch as one rank sees it.

    Attributes:
        chunks: The chunks of this rank's items.
        layout: The layout of the batch on all ranks.
        items: The items of all ranks, in the order in which they are gathered.
    """

    chunks: StepChunks
    layout: StepLayout
    items: Sequence[ProcessedItem]


def rank_batch(batch: Batch, sizes: ChunkSizes, rank: int, ranks: int, made: Items = TINY) -> RankBatch:
    """Distributes a batch to ranks. The last row shares the first row's target, and three rows have a hard negative."""
    items = [made.make(row, batch.query_has_image(row)) for row in range(PAIRS)]
    with_image = [batch.target_images and row % 5 == 4 and batch.query_has_image(row) for row in range(PAIRS)]
    items += [made.make(100 + row, has_image) for row, has_image in enumerate(with_image)]
    positive = [*range(PAIRS, 2 * PAIRS - 1), PAIRS]
    negative_row = list(batch.negative_rows)
    items += [made.make(200 + number, number == 1) for number in range(len(negative_row))]
    owners = [batch.owner(item, ranks) for item in range(len(items))]
    order = sorted(range(len(items)), key=lambda item: owners[item])
    number = {item: place for place, item in enumerate(order)}
    own = [item for item in order if owners[item] == rank]
    encode, keep, repeat = sizes.phases([made.measured(items[item], item < PAIRS) for item in own])

    def chunks(phase: Sequence[Sequence[int]]) -> list[Chunk]:
        return [made.inputs.chunk([items[own[index]] for index in chunk]) for chunk in phase]

    layout = StepLayout(
        counts=tuple(owners.count(each) for each in range(ranks)),
        local_order=end_to_end_positions([*encode, *keep]),
        pairs=Pairs(
            torch.tensor([number[item] for item in range(PAIRS)]),
            torch.tensor([number[item] for item in positive]),
            torch.tensor([number[2 * PAIRS + each] for each in range(len(negative_row))]) if negative_row else None,
            torch.tensor(negative_row) if negative_row else None,
            **(kit_knowledge(number, negative_row) if batch.has_kit else {}),
        ),
        rows=range(rank * PAIRS // ranks, (rank + 1) * PAIRS // ranks),
        digest=7,
    )
    phases = StepChunks(*(Phase.of(chunks(phase)) for phase in (encode, keep, repeat)))
    return RankBatch(phases, layout, [items[item] for item in order])


def kit_knowledge(number: dict[int, int], negative_row: list[int]) -> dict[str, Tensor]:
    """A teacher's scores and masks of the rows, with some missing, and the rows' temperature groups."""
    teacher_positive, teacher_negative = torch.linspace(0.9, 0.3, PAIRS), torch.linspace(0.8, 0.4, len(negative_row))
    teacher_positive[5] = teacher_negative[1] = float("nan")
    return {
        "ignored": torch.tensor([[row, number[PAIRS + (row + 2) % 7]] for row in range(0, PAIRS, 3)]),
        "teacher_positive": teacher_positive,
        "teacher_negative": teacher_negative,
        "temperature_group": torch.arange(PAIRS) % len(KIT_TEMPERATURES),
    }


def kit_loss(device: torch.device) -> tuple[ContrastiveLoss, LearnedTemperature]:
    """The loss with all options, computed in blocks, and its temperatures."""
    learned = LearnedTemperature(device=device, groups=[str(number) for number in range(len(KIT_TEMPERATURES))])
    with torch.no_grad():
        learned.log_temperature.copy_(torch.tensor(KIT_TEMPERATURES).log())
    options: dict[str, Any] = {"negatives": KIT_NEGATIVES, "distillation": KIT_DISTILLATION}
    return ContrastiveLoss(learned, True, 3, bidirectional=True, **options), learned


def kit_gradient(encoder: VLM2Vec, batch: RankBatch, made: Items) -> tuple[dict[str, Tensor], Tensor]:
    """The textbook gradient (see `textbook_gradient`) with all options, and that of the temperatures' logarithms."""
    encoder.zero_grad()
    everything = encoder(**made.inputs.chunk(batch.items).arguments(encoder.device, dummy_image=False))
    theta = torch.tensor(KIT_TEMPERATURES, dtype=torch.float64, device=encoder.device).log().requires_grad_()
    pairs = batch.layout.pairs.to(encoder.device)
    naive_loss(everything, pairs, theta.exp(), True, True, (), KIT_NEGATIVES, KIT_DISTILLATION).backward()  # type: ignore[no-untyped-call]
    assert theta.grad is not None
    return _gradients_of(encoder), theta.grad


def padding_chunk(made: Items = TINY) -> Chunk:
    """A chunk of one token."""
    return made.inputs.chunk([ProcessedItem(torch.tensor([1]))])


def plain_gradient(encoder: VLM2Vec, batch: RankBatch, seed: int, made: Items = TINY) -> dict[str, Tensor]:
    """The gradient without a cache: every rank's chunks in one graph, one loss, one backward, one sum over ranks.

    Calls run in the order of pass 1, so that the same seed gives the same dropout masks.
    """
    device = encoder.device
    torch.manual_seed(seed)
    slots = agree_on_slots(batch.chunks, 0, device)
    rows = []
    for phase, phase_slots in zip(batch.chunks.phases[:2], slots[:2], strict=True):
        for chunk, is_own, with_images in phase_slots.fill(phase, padding_chunk(made)):
            representations = encoder(**chunk.arguments(device, with_images))
            if is_own:
                rows.append(representations)
    local = torch.cat([representations[:0], *rows])[batch.layout.local_order.to(device)]
    everything = gather_rows(local, batch.layout.counts)
    gradients = _gradients(encoder, everything, batch.layout, list(batch.layout.rows))
    for gradient in gradients.values():
        dist.all_reduce(gradient)
    return gradients


def textbook_gradient(
    encoder: VLM2Vec, batch: RankBatch, made: Items = TINY, temperature: float = TEMPERATURE
) -> dict[str, Tensor]:
    """The gradient of the textbook step: the global batch is one chunk on one rank, without cache, ranks and dummies.

    Only for models without dropout, because different chunks have different dropout masks.
    """
    chunk = made.inputs.chunk(batch.items)
    everything = encoder(**chunk.arguments(encoder.device, dummy_image=False))
    return _gradients(encoder, everything, batch.layout, list(range(PAIRS)), temperature)


def _gradients(
    encoder: VLM2Vec, everything: Tensor, layout: StepLayout, rows: list[int], temperature: float = TEMPERATURE
) -> dict[str, Tensor]:
    """The gradient of some rows' part of the mean loss, by parameter; zero for parameters that were not used."""
    encoder.zero_grad()
    pairs = layout.pairs.to(everything.device)
    scores = everything[pairs.query] @ everything[pairs.positive].T
    if pairs.negative is not None:
        scores = torch.cat([scores, everything[pairs.query] @ everything[pairs.negative].T], 1)
    targets = torch.tensor(rows, device=everything.device)
    loss = F.cross_entropy(scores[rows] / temperature, targets, reduction="sum") / PAIRS
    loss.backward()  # type: ignore[no-untyped-call]
    return _gradients_of(encoder)


def _gradients_of(encoder: VLM2Vec) -> dict[str, Tensor]:
    trained = {name: each for name, each in encoder.named_parameters() if each.requires_grad}
    return {name: torch.zeros_like(each) if each.grad is None else each.grad.clone() for name, each in trained.items()}


class RecordingStep(CachedStep):
    """Records every engine call's result, to compare the passes bit for bit."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.results: list[Tensor] = []
        self.second_pass = 0

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


def run_cells(cells: Sequence[Cell], device: torch.device) -> Iterator[float]:
    """The relative error of every cell on a device.

    It is infinite if dropout was not replayed bit for bit, or if gradient checkpointing ran no layer again.
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
                expected, of_temperatures = kit_gradient(reference, batch, made)
            elif cell.has_textbook_reference:
                expected = textbook_gradient(reference, batch, made)
            else:
                expected = plain_gradient(reference, batch, seed, made)
            torch.manual_seed(seed)
            recomputation.clear()
            step = RecordingStep(engine, loss_fn, padding_chunk(made))
            with kept_norms(engine), cuda_autocast(device.type == "cpu" and "bf16" in kind):
                step.cache_step(batch.chunks, batch.layout)
            error = relative_error(engine, expected)
            if learned is not None:
                found = learned.log_temperature.grad
                assert found is not None
                dist.all_reduce(found)
                error = max(error, float((found - of_temperatures).norm() / of_temperatures.norm()))
            engine.step()
            is_wrong = dropout > 0 and step.passes_differ(batch)
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
