"""The loader yields the same items for any number of ranks and workers, and after any resume."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.loader import memory_over_steps
from tests.rig.made_up_sidecar import made_up
from tests.rig.written import add_subset, stored_image
from vlm2vec.backbones.phi3_v import Phi3VProcessor
from vlm2vec.batches import BatchReader, ChunkSizes, GlobalOrder, Mixture, PlanSource, TrainingBatches, lay_out
from vlm2vec.batches.clusters import Clusters
from vlm2vec.batches.layout import BatchLayout
from vlm2vec.batches.reader import MadeChunk
from vlm2vec.batches.replacement import GlobalBatch
from vlm2vec.batches.step_plan import PlannedItem, StepPlan
from vlm2vec.choices import META_TASK
from vlm2vec.contrastive import Chunk
from vlm2vec.errors import InputError
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.items import EncodeItem, ItemImage
from vlm2vec.inputs.packing import TokenBudget
from vlm2vec.item_rules import IMAGE_ONLY_TEXT
from vlm2vec.mined.rows import MinedRows
from vlm2vec.shards import ShardSet
from vlm2vec.shards.writer import StoredItem

STEPS, BATCH = 200, 16
MIXTURES = {
    "by size": Mixture(),
    "everything": Mixture(unit=4, temperature=2, distinct_positives=True, max_samples=20),
    "clusters of meta-tasks": Mixture(unit=8, groups=META_TASK),
}


class NamesOnly(BatchReader):
    """Makes chunks without decoding: what they hold is in their names."""

    def chunk(self, items: Sequence[PlannedItem]) -> MadeChunk:
        return MadeChunk(Chunk({}, len(items), names=tuple(item.name for item in items)), ())


@pytest.fixture(scope="module")
def shards(mini_shards_dir: Path) -> ShardSet:
    return ShardSet.open(mini_shards_dir)


@pytest.fixture(scope="module")
def inputs(golden_model_dir: Path) -> ItemEncoderInputs:
    return ItemEncoderInputs(Phi3VProcessor.from_pretrained(golden_model_dir), max_len=64)


def source(
    shards: ShardSet,
    inputs: ItemEncoderInputs,
    rank: int = 0,
    num_ranks: int = 1,
    mixture: str = "by size",
    reader: type[BatchReader] = NamesOnly,
) -> PlanSource:
    # Every third row is left over, and clusters of four are rows some way from each other.
    numbers = {name: np.full(size, -1, np.int32) for name, size in shards.num_samples.items()}
    for number in numbers.values():
        members = np.arange(len(number))[np.arange(len(number)) % 3 > 0]
        number[members[: len(members) // 4 * 4]] = np.arange(len(members) // 4 * 4) % (len(members) // 4)
    clusters = Clusters.of(numbers, 4) if "clusters" in mixture else None
    order = GlobalOrder(
        shards.num_samples, BATCH, 7, MIXTURES[mixture], lambda name: shards.columns(name)["positive_hash"], clusters
    )
    sizes = ChunkSizes(TokenBudget(1000), no_grad_tokens=2000, keep_graphs=1)
    return PlanSource(order, reader(shards, inputs, sizes, rank), num_ranks, 0, STEPS)


def digest(lines: Iterable[object]) -> str:
    return hashlib.sha256("\n".join(map(str, lines)).encode()).hexdigest()


def pairs(shards: ShardSet, plans: PlanSource, steps: Iterable[int], num_ranks: int) -> list[str]:
    """The rows of some steps by the keys of their items."""
    lines = []
    for step in steps:
        layout = lay_out(plans.order.batch(step), shards, plans.reader.inputs.cost, num_ranks)
        names = [
            f"{item.subset}/{shards.columns(item.subset)['row'][item.position]} {item.side}" for item in layout.items
        ]
        lines += [f"{step} {names[q]} {names[p]}" for q, p in zip(layout.query, layout.positive, strict=True)]
    return lines


@pytest.mark.parametrize("mixture", MIXTURES)
def test_200_steps_hold_the_same_pairs_on_any_number_of_ranks(
    mixture: str, shards: ShardSet, inputs: ItemEncoderInputs
) -> None:
    digests = {
        digest(pairs(shards, source(shards, inputs, mixture=mixture), range(STEPS), ranks)) for ranks in (1, 2, 4, 7)
    }
    assert len(digests) == 1
    resumed = [
        line
        for start in (0, 1, 77, 130)
        for line in pairs(
            shards,
            source(shards, inputs, mixture=mixture),
            range(start, {0: 1, 1: 77, 77: 130, 130: STEPS}[start]),
            {0: 2, 1: 1, 77: 7, 130: 4}[start],
        )
    ]
    assert digest(resumed) in digests


@pytest.mark.parametrize("num_ranks", [2, 4, 7])
def test_the_ranks_read_every_item_of_the_batch_once(
    num_ranks: int, shards: ShardSet, inputs: ItemEncoderInputs
) -> None:
    alone = source(shards, inputs)
    ranks = [source(shards, inputs, rank, num_ranks) for rank in range(num_ranks)]
    for step in (0, 13, 199):
        plans = [each.plan(step) for each in ranks]
        read = [item.name for plan in plans for item in first_pass(plan)]
        assert len(set(read)) == len(read)
        assert set(read) == {item.name for item in first_pass(alone.plan(step))}
        assert len({plan.header.layout.digest for plan in plans}) == 1


def test_a_mined_negative_that_cannot_be_read_gives_way_and_the_rows_stay(
    shards: ShardSet, inputs: ItemEncoderInputs
) -> None:
    mined = MinedRows(tuple(made_up(size, seed=0) for size in shards.num_samples.values()), negatives=2)
    plans = dataclasses.replace(source(shards, inputs), mined=mined)
    batch = plans.order.batch(0)
    rows = {(shards.subsets[subset], int(at)) for subset, at in zip(batch.subsets, batch.positions, strict=True)}

    def read(damaged: frozenset[tuple[str, int]]) -> set[tuple[str, int]]:
        items = first_pass(dataclasses.replace(plans, damaged=damaged).plan(0))
        return {(item.reference.subset, item.reference.position) for item in items}

    before = read(frozenset())
    assert rows <= before
    damaged = min(before - rows)
    after = read(frozenset({damaged}))
    assert rows <= after
    assert damaged not in after


def first_pass(plan: StepPlan) -> list[PlannedItem]:
    """The items of the chunks of pass 1, each of which runs once."""
    count = plan.header.phases[0][0] + plan.header.phases[1][0]
    return [item for chunk in plan.chunks[:count] for item in chunk]


def chunks_of(batches: TrainingBatches) -> Iterator[Chunk]:
    """All chunks of all steps, in order."""
    for batch in batches:
        for phase in batch.chunks.phases:
            yield from phase.chunks


def names(batches: TrainingBatches) -> list[str]:
    """What the chunks of all steps hold, in order."""
    return [
        f"{batch.header.step} {name}"
        for batch in batches
        for phase in batch.chunks.phases
        for chunk in phase.chunks
        for name in chunk.names
    ]


def test_200_steps_come_alike_from_any_number_of_workers_and_after_a_resume(
    shards: ShardSet, inputs: ItemEncoderInputs
) -> None:
    plans = source(shards, inputs, rank=1, num_ranks=2, mixture="clusters of meta-tasks")
    alone = names(TrainingBatches(plans, num_workers=0))
    assert len({line.partition(" ")[0] for line in alone}) == STEPS
    for workers in (1, 3):
        assert digest(names(TrainingBatches(plans, workers))) == digest(alone)
    for start in (1, 120):
        resumed = names(TrainingBatches(dataclasses.replace(plans, first_step=start), num_workers=2))
        assert digest(resumed) == digest(line for line in alone if int(line.partition(" ")[0]) >= start)


class Opened(BatchReader):
    """Writes down in which process images are decoded."""

    def chunk(self, items: Sequence[PlannedItem]) -> MadeChunk:
        made = super().chunk(items)
        return made._replace(chunk=dataclasses.replace(made.chunk, names=(str(os.getpid()),)))


def test_nothing_is_decoded_in_the_training_process(
    shards: ShardSet, inputs: ItemEncoderInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = dataclasses.replace(source(shards, inputs, reader=Opened), last_step=1)
    alone = [
        chunk.inputs for batch in TrainingBatches(plans, 0) for phase in batch.chunks.phases for chunk in phase.chunks
    ]
    here = os.getpid()
    decode = Image.Image.load
    monkeypatch.setattr(
        Image.Image, "load", lambda image: decode(image) if os.getpid() != here else pytest.fail("decoded")
    )
    chunks = [chunk for batch in TrainingBatches(plans, 2) for phase in batch.chunks.phases for chunk in phase.chunks]
    assert (str(here),) not in {chunk.names for chunk in chunks}
    assert len({chunk.names for chunk in chunks}) == 2
    for ours, theirs in zip((chunk.inputs for chunk in chunks), alone, strict=True):
        torch.testing.assert_close(ours["input_ids"], theirs["input_ids"], rtol=0, atol=0)
        torch.testing.assert_close(ours.get("pixel_values"), theirs.get("pixel_values"), rtol=0, atol=0)


def test_all_workers_end_at_the_end_and_at_close(shards: ShardSet, inputs: ItemEncoderInputs) -> None:
    """Whoever keeps a batch, whose chunks hold the loader."""
    plans = dataclasses.replace(source(shards, inputs), last_step=2)
    others = len(multiprocessing.active_children())
    batches = TrainingBatches(plans, num_workers=2)
    steps = iter(batches)
    first = next(steps)
    assert len(multiprocessing.active_children()) == others + 3
    batches.close()
    assert len(multiprocessing.active_children()) == others
    kept, batches = [first], TrainingBatches(plans, num_workers=2)
    for batch in batches:
        kept.append(batch)
        [list(phase.chunks) for phase in batch.chunks.phases]
    assert [batch.header.step for batch in kept] == [0, 0, 1]
    assert len(multiprocessing.active_children()) == others


def test_what_is_wrong_comes_out_when_its_turn_has_come(shards: ShardSet, inputs: ItemEncoderInputs) -> None:
    class Unreachable(NamesOnly):
        def plan(self, batch: GlobalBatch, layout: BatchLayout) -> StepPlan:
            if batch.step == 3:
                raise InputError("http://store/Photos-00000.tar: no answer")
            return super().plan(batch, layout)

    for workers in (0, 2):
        seen = []
        batches = iter(TrainingBatches(source(shards, inputs, reader=Unreachable), workers))
        for batch in itertools.islice(batches, 3):
            seen.append(batch.header.step)
            [list(phase.chunks) for phase in batch.chunks.phases]
        assert seen == [0, 1, 2]
        with pytest.raises(InputError, match="no answer"):
            next(batches)


def test_a_step_comes_again_without_its_damaged_samples(shards: ShardSet, inputs: ItemEncoderInputs) -> None:
    plans = source(shards, inputs)
    for workers in (0, 1):
        batches = TrainingBatches(dataclasses.replace(plans, last_step=6), workers)
        seen = []
        for batch in batches:
            items = first_pass(plans.plan(batch.header.step))
            damaged = {(items[0].reference.subset, items[0].reference.position)}
            seen.append((batch.header.step, {name for chunk in batch.chunks.encode.chunks for name in chunk.names}))
            if [step for step, _ in seen] in ([0, 1, 2], [0, 1, 2, 2, 3, 4]):
                batches.replace(damaged)  # with chunks of the other phases still on their way
                continue
            [list(phase.chunks) for phase in (batch.chunks.keep, batch.chunks.repeat)]
        assert [step for step, _ in seen] == [0, 1, 2, 2, 3, 4, 4, 5]
        assert seen[2][1] != seen[3][1]
        assert len(seen[2][1] & seen[3][1]) > 15


def test_items_that_cannot_be_used_are_damage_and_no_error(
    mini_shards_dir: Path, golden_model_dir: Path, tmp_path: Path
) -> None:
    """Found by the planner (text and image do not fit) or by a decoding worker (the index does not fit the image)."""
    root = Path(shutil.copytree(mini_shards_dir, tmp_path / "shards"))
    tag = "<|image_1|> What is this?"
    rows = {
        0: (StoredItem("no tag", (stored_image((40, 30), 0),)), "has no image tag"),
        1: (StoredItem(tag, (stored_image((1, 3000), 1),)), "too thin"),
        2: (StoredItem(tag, (stored_image((80, 40), 2, (40, 40)),)), "size differs from the shard's index"),
        3: (StoredItem(tag, (stored_image((40, 40), 3, (1 << 20, 1)),)), "too thin"),
    }
    plain = [StoredItem(tag, (stored_image((40, 30), shade),)) for shade in range(4, BATCH)]
    add_subset(root, "Odd", [*(item for item, _ in rows.values()), *plain])
    odd = ShardSet.open(root, ["Odd"])
    processor = Phi3VProcessor.from_pretrained(golden_model_dir, num_crops=4)
    plans = source(odd, ItemEncoderInputs(processor, max_len=64), reader=BatchReader)
    plans = dataclasses.replace(plans, order=GlobalOrder(odd.num_samples, BATCH, 7), last_step=1)
    for workers in (0, 1):
        batches = TrainingBatches(plans, workers)
        for chunk in chunks_of(batches):
            assert len(chunk.inputs["input_ids"]) == chunk.num_items
        assert set(batches.damage) == {("Odd", position) for position in rows}
        for position, (_, reason) in rows.items():
            assert batches.damage["Odd", position].startswith(f"Odd/{position:08d} (query): ")
            assert reason in batches.damage["Odd", position]


def test_memory_is_flat(mini_shards_dir: Path, mini_model_dir: Path) -> None:
    """The short form of benchmarks/loader.py: 10,000 steps there, 160 here."""
    inputs = ItemEncoderInputs(Phi3VProcessor.from_pretrained(mini_model_dir), max_len=64)
    held = list(memory_over_steps(ShardSet.open(mini_shards_dir), inputs, steps=160, windows=4))
    assert len(held) == 4
    assert held[3] < held[1] + 8  # MiB; a step's images are one


def test_an_image_without_text_is_trained_with_the_default_prompt(inputs: ItemEncoderInputs) -> None:
    """As `encode` and the evaluation have it, in planning and in the chunk alike."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    images = (ItemImage(buffer.getvalue(), "a"),)
    prompted = inputs.process(EncodeItem(IMAGE_ONLY_TEXT, images, "a"))
    found = inputs.process(EncodeItem("", images, "a"))
    assert found.input_ids.tolist() == prompted.input_ids.tolist()
    assert inputs.measure("", [(40, 30)], "a").num_tokens == len(prompted.input_ids)
