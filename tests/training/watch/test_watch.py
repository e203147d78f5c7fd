"""The metrics of a run are correct: time, similarities, pairs, FLOPs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.plan.test_plan import model
from tests.training.watch.device import CPU, Device
from vlm2vec.backbones.phi3_v.checkpoint import load_config
from vlm2vec.batches import GlobalOrder, StepHeader
from vlm2vec.contrastive import StepOutput
from vlm2vec.contrastive.loss import RowStatistics
from vlm2vec.contrastive.watch import Part
from vlm2vec.images.decode import open_image
from vlm2vec.plan.model_flops import counted_flops
from vlm2vec.plan.passes import ChunkShape
from vlm2vec.shards import ShardSet
from vlm2vec.training.watch.clock import StepClock
from vlm2vec.training.watch.first_pairs import first_pairs
from vlm2vec.training.watch.metrics import (
    DIVERGENCE,
    HARDEST_NEGATIVE,
    MASKED_SIMILAR,
    POSITIVE,
    SIMILARITY_BINS,
    StepMeter,
)
from vlm2vec.training.watch.mfu import PEAK_TFLOPS, ModelFlops
from vlm2vec.training.watch.parts import RunPart

pytestmark = pytest.mark.numeric

ROWS = 200


def step_of(rows: int, seed: int) -> tuple[StepHeader, StepOutput]:
    """A step's header and output, as far as a meter looks at them."""
    made = torch.Generator().manual_seed(seed)
    positive, hardest = torch.rand(2, rows, generator=made) * 2 - 1
    hardest[0] = -torch.inf  # a row without a negative
    statistics = RowStatistics(
        loss=torch.rand(rows, generator=made),
        hit=positive > hardest,
        positive_similarity=positive,
        hardest_negative_similarity=hardest,
        mean_negative_similarity=hardest.nan_to_num(neginf=0.0) - 0.5,
        masked=torch.zeros(rows, dtype=torch.int64),
        masked_similar=torch.arange(rows) % 3,
        divergence=torch.rand(rows, generator=made),
    )
    header = StepHeader(
        step=0,
        epoch=0,
        layout=None,  # type: ignore[arg-type]
        row_subsets=torch.arange(rows) % 2,
        num_items=2 * rows,
        num_tokens=10 * rows,
        squared_tokens=100 * rows,
        vision_units=rows,
        squared_vision_units=2 * rows,
        phases=(),
    )
    return header, StepOutput(statistics.loss.mean(), statistics)


def test_histograms_and_subsets_are_those_of_the_rows() -> None:
    flops = ModelFlops(
        per_token=3.0, per_squared_token=0.5, per_vision_unit=7.0, peak_flops=1e6, per_squared_vision_unit=1.5
    )
    device = Device()
    clock = device.clock()
    meter = StepMeter(["even", "odd", "unseen"], CPU, clock, flops)
    steps = [step_of(ROWS, seed) for seed in (0, 1)]
    for each in steps:
        with clock.part(Part.PASS_1):
            device.seconds += 1
        with clock.part(RunPart.EVALUATION):
            device.seconds += 5
        meter.add(*each)
    other = StepMeter(["even", "odd", "unseen"], CPU, StepClock(CPU), flops)
    other.load_state_dict(meter.state_dict())  # a resumed run's window
    for figures in (meter.report(), other.report()):
        statistics = [output.statistics for _, output in steps]
        edges = np.linspace(-1, 1, SIMILARITY_BINS + 1)
        for name, kind in ((POSITIVE, "positive_similarity"), (HARDEST_NEGATIVE, "hardest_negative_similarity")):
            similarities = torch.cat([getattr(each, kind) for each in statistics])
            counts, _ = np.histogram(similarities[similarities.isfinite()].double().numpy(), edges)
            assert figures.histograms[name] == counts.tolist()
        assert sum(figures.histograms[HARDEST_NEGATIVE]) == 2 * ROWS - 2
        values = figures.values
        assert values["subset_loss/odd"] == pytest.approx(
            float(torch.cat([each.loss[1::2] for each in statistics]).mean())
        )
        assert not [name for name in values if name.endswith("/unseen")]
        means = torch.cat([each.mean_negative_similarity for each in statistics])
        hardest = torch.cat([each.hardest_negative_similarity for each in statistics]).nan_to_num(neginf=0.0)
        assert values["similarity/mean_negative"] == pytest.approx(float(means.mean()))
        assert values["subset_mean_negative/odd"] == pytest.approx(float(means[1::2].mean()))
        assert values["subset_hardest_negative/even"] == pytest.approx(float(hardest[::2].mean()))
        assert (values["milliseconds_per_step"], values["pairs_per_second"]) == (1000.0, ROWS)  # without evaluation
        assert values["mfu"] == pytest.approx(ROWS * (3.0 * 10 + 0.5 * 100 + 7.0 + 1.5 * 2) / 1e6)
    meter.add(*steps[0])
    with clock.part(Part.PASS_1):
        device.seconds += 3
    figures = meter.report()
    assert sum(figures.histograms[POSITIVE]) == ROWS  # a new window
    assert {part: figures.values[f"time_ms/{part}"] for part in ("pass_1", "other")} == {"pass_1": 3000.0, "other": 0.0}


def test_metrics_of_options_are_reported_where_they_are_in_force() -> None:
    device = Device()
    clock, other = device.clock(), device.clock()
    plain = StepMeter(["even", "odd"], CPU, other)
    meter = StepMeter(["even", "odd"], CPU, clock, optional=(MASKED_SIMILAR, DIVERGENCE))
    with clock.part(Part.PASS_1), other.part(Part.PASS_1):
        device.seconds += 1
    before = StepMeter(["even", "odd"], CPU, StepClock(CPU))
    steps = [step_of(ROWS, seed) for seed in (0, 1)]
    for each in (plain, meter):
        each.add(*steps[0])
    state = meter.state_dict()
    sums = state["sums"].tolist()
    before.load_state_dict({**state, "sums": state["sums"][:6]})  # of a checkpoint that had no such options
    meter.add(*steps[1])
    values = meter.report().values
    assert not {MASKED_SIMILAR, DIVERGENCE} & set(plain.report().values)
    assert values[MASKED_SIMILAR] == sum(row % 3 for row in range(ROWS))
    divergences = torch.cat([output.statistics.divergence for _, output in steps])
    assert values[DIVERGENCE] == pytest.approx(float(divergences.mean()))
    assert before.state_dict()["sums"].tolist() == [*sums[:6], *[0] * (len(sums) - 6)]


def test_a_window_of_an_older_checkpoint_has_no_squares_of_vision_units_and_no_mean_negatives() -> None:
    before, after = (StepMeter(["even", "odd"], CPU, StepClock(CPU)) for _ in range(2))
    before.add(*step_of(ROWS, seed=0))
    state = before.state_dict()
    assert state["counts"] == [1, 10 * ROWS, 100 * ROWS, ROWS, 2 * ROWS, 2 * ROWS]
    older = {"counts": state["counts"][:-1], "sums": state["sums"][:6], "subset_rows": state["subset_rows"][:3]}
    after.load_state_dict({**state, **older})
    after.add(*step_of(ROWS, seed=0))
    torch.testing.assert_close(after.state_dict()["sums"][:6], 2 * state["sums"][:6])
    torch.testing.assert_close(after.state_dict()["sums"][6:], state["sums"][6:])
    assert after.state_dict()["counts"] == [2, 20 * ROWS, 200 * ROWS, 2 * ROWS, 4 * ROWS, 2 * ROWS]


def test_pairs_are_the_first_of_the_batch_with_their_images(mini_shards_dir: Path) -> None:
    shards = ShardSet.open(mini_shards_dir)
    batch = GlobalOrder(shards.num_samples, 16, seed=3).batch(0)
    pairs = first_pairs(batch, shards, count=16)
    assert len(pairs) == 16
    kinds = set()
    for subset, position, pair in zip(batch.subsets.tolist(), batch.positions.tolist(), pairs, strict=True):
        sample = shards.read(shards.subsets[subset], position)
        assert (pair.name, pair.subset) == (sample.key, shards.subsets[subset])
        assert (pair.query, pair.positive) == (sample.query.text, sample.positive.text)
        sides = [sample.query.image, sample.positive.image]
        kinds.add(tuple(side is not None for side in sides))
        if pair.image is None:
            assert sides == [None, None]
            continue
        assert pair.image.shape == (320, 656, 3)
        for side, shown in zip(sides, (pair.image[:, :320], pair.image[:, 336:]), strict=True):
            if side is None:
                assert (shown == 224).all()
            else:
                width, height = open_image(side).size
                rows, columns = np.nonzero((shown != 224).any(axis=2))
                assert np.ptp(rows) < 320 * height / max(width, height) + 1
                assert len(columns)
    assert len(kinds) > 1


@pytest.mark.parametrize("flags", [[], ["--lora"]], ids=" ".join)
def test_the_polynomial_counts_what_passes_take(flags: list[str], mini_model_dir: Path) -> None:
    """With adapters only, the first layer's input has a gradient where images are, and none where only text is: that
    is put to the crops, and matters in a model of a few layers. DoRA's second frozen product, which dropout needs, is
    not counted."""
    made = model(load_config(mini_model_dir, {}), *flags)
    counted = counted_flops(made, peak_flops=1.0)
    made = made.without_dropout()
    size = (64, 64)
    tokens, crops = made.processor.num_image_tokens(*size), made.processor.num_vision_units(*size)
    for width, sizes, units, error in ((300, (), 0, 1e-6), (tokens + 30, (size,), crops, 0.04 if flags else 1e-3)):
        one, three = (sum(made.cost(ChunkShape(rows, width, sizes), True).flops) for rows in (1, 3))
        assert counted.of(2 * width, 2 * width**2, 2 * units) == pytest.approx(three - one, rel=error)


def test_longer_names_of_devices_come_first() -> None:
    names = list(PEAK_TFLOPS)
    assert not [(name, later) for n, name in enumerate(names) for later in names[n + 1 :] if name in later]
