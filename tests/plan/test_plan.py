"""The plan compared with tensors and counters: exact where possible, close where it is an estimate."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trials.rig.launcher import REPOSITORY, environment
from trials.rig.patience import HANG_SECONDS
from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VProcessor
from vlm2vec.backbones.phi3_v.checkpoint import load_config
from vlm2vec.contrastive import ContrastiveLoss, Pairs
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.plan.estimate import GIB, RunPlan
from vlm2vec.plan.meta import MetaModel
from vlm2vec.plan.meter import TensorMeter
from vlm2vec.plan.passes import ChunkShape, measure
from vlm2vec.plan.run_plan import make_plan, parse_cluster
from vlm2vec.plan.shared_memory import shared_memory
from vlm2vec.plan.tables import tables
from vlm2vec.plan.traffic import collectives
from vlm2vec.training.flags.run import RunArguments, parse_arguments

EDGE = 32  # of a crop of the miniature, in pixels
SHAPE = ChunkShape(rows=5, width=40, image_sizes=((4 * EDGE, EDGE),))  # 5 crops
ZERO2 = str(REPOSITORY / "ds_configs/zero2.json")


def arguments(*flags: str, deepspeed: str = ZERO2) -> RunArguments:
    needed = ["--model_name", "m", "--dataset_name", "d", "--output_dir", "o", "--deepspeed", deepspeed]
    return parse_arguments(["--max_steps", "1", "--global_batch_size", "64", *flags], defaults=needed)


def model(config: Phi3VConfig, *flags: str) -> MetaModel:
    settings = arguments(*flags).resolve(1, {"zero_optimization": {"stage": 2}})
    return MetaModel(config, settings.encoder, Phi3VProcessor.without_tokenizer(config, num_crops=4))


@pytest.fixture(scope="module")
def config(mini_model_dir: Path) -> Phi3VConfig:
    return load_config(mini_model_dir, {})


def test_parameters_of_the_published_model() -> None:
    shapes = json.loads((REPOSITORY / "tests/data/golden/phi35v_full_size_shapes.json").read_text())
    published = {name: torch.Size(shape).numel() for name, shape in shapes.items() if name != "lm_head.weight"}
    clip_layer = sum(count for name, count in published.items() if ".encoder.layers.N." in name)
    layers = {"model.layers.N.": 32, "model.vision_embed_tokens.img_processor.vision_model.encoder.layers.N.": 24}
    times = {name: next((count for start, count in layers.items() if name.startswith(start)), 1) for name in published}
    size = model(Phi3VConfig()).size()
    assert size.total == sum(times[name] * count for name, count in published.items())
    unused = clip_layer + sum(count for name, count in published.items() if ".post_layernorm." in name)
    assert size.trainable == size.total - unused == size.language + size.vision


@pytest.mark.parametrize("flags", [[], ["--bf16", "--gradient_checkpointing"], ["--bf16", "--lora"]], ids=" ".join)
def test_shallow_models_tell_what_a_deep_one_takes(flags: list[str], config: Phi3VConfig) -> None:
    vision = {**config.to_dict()["vision_config"], "num_hidden_layers": 5}
    deep = Phi3VConfig.from_dict({**config.to_dict(), "num_hidden_layers": 4, "vision_config": vision})
    made = model(deep, *flags)
    checkpointing = "--gradient_checkpointing" in flags
    expected = measure(made.encoder((4, 5)), SHAPE, True, checkpointing)
    cost = made.cost(SHAPE, True, checkpointing)
    assert (cost.pixels, cost.saved, cost.flops) == (expected.pixels, expected.saved, expected.flops)
    assert cost.peak == pytest.approx(expected.peak, rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_graph_on_the_cpu_is_as_large_as_planned(
    checkpointing: bool, mini_model_dir: Path, config: Phi3VConfig
) -> None:
    """What autograd keeps, seen by its own hooks; the pixels are an input and counted on their own."""
    encoder = VLM2Vec.from_pretrained(mini_model_dir, dtype=torch.float32).train()
    if checkpointing:
        encoder.gradient_checkpointing_enable()
    weights = {each.untyped_storage().data_ptr() for each in encoder.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that its address is not used again
        return tensor

    assert config.vision_config.image_size == EDGE
    ids = torch.full((SHAPE.rows, SHAPE.width), 1)
    tokens = encoder.processor.num_image_tokens(4 * EDGE, EDGE)
    ids[:, :tokens] = -1
    pixels = torch.zeros(SHAPE.rows * 5, 3, EDGE, EDGE)
    sizes = torch.tensor([[EDGE, 4 * EDGE]] * SHAPE.rows)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        vectors = encoder(ids, torch.ones_like(ids), pixel_values=pixels, image_sizes=sizes)
    saved = sum(storage.nbytes() for storage in kept.values())
    assert vectors.requires_grad
    cost = model(config).cost(SHAPE, True, checkpointing)
    assert cost.saved == pytest.approx(saved, rel=0.05)


def test_flops_are_those_of_torchs_counter(config: Phi3VConfig) -> None:
    made = model(config, "--attn_implementation", "eager")
    encoder = made.encoder(made.depths)
    ids = torch.ones(3, 20, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        encoder(ids, torch.ones_like(ids)).sum().backward()
    assert sum(made.cost(ChunkShape(3, 20), True).flops) == counter.get_total_flops()


def plan(*flags: str, memory: float = 80) -> RunPlan:
    cluster, workload, _ = parse_cluster(["--gpus", "2", "--nodes", "2", "--gpu_memory", str(memory)])
    return make_plan(arguments(*flags), cluster, workload)


@pytest.fixture(scope="module")
def small(mini_model_dir: Path) -> RunPlan:
    return plan("--model_name", str(mini_model_dir), "--bf16", "--chunk_tokens", "512")


def with_memory(made: RunPlan, memory: float) -> RunPlan:
    return RunPlan(
        made.model, made.settings, made.zero, dataclasses.replace(made.cluster, gpu_memory=memory), made.workload
    )


def test_the_loss_takes_at_most_what_is_planned(small: RunPlan) -> None:
    pairs, ranks = small.pairs, small.cluster.num_ranks
    meter = TensorMeter("cpu")
    with meter:
        vectors = torch.randn(2 * pairs, small.width, requires_grad=True)
        rows = Pairs(torch.arange(pairs), torch.arange(pairs) + pairs)
        loss, _ = ContrastiveLoss(0.02, mask_false_negatives=True)(vectors, rows, range(pairs // ranks))
        loss.backward()
    assert 0.5 * small.loss_bytes < meter.peak < small.loss_bytes


def test_hard_negatives_are_items_and_columns(small: RunPlan, mini_model_dir: Path) -> None:
    flags = ("--model_name", str(mini_model_dir), "--bf16", "--chunk_tokens", "512", "--hard_negatives", "True")
    own = plan(*flags)
    assert (small.negatives, own.negatives) == (0, 1)
    assert own.items == 3 * own.pairs
    assert sum(own.items_a_rank) == pytest.approx(1.5 * sum(small.items_a_rank))
    assert own.flops[0] == pytest.approx(1.5 * small.flops[0])
    assert own.calls.repeat > small.calls.repeat
    shown = " ".join(str(part) for part in tables(own))
    assert "batch 64 with 1 hard negative a row:" in shown
    assert "hard negative" not in " ".join(str(part) for part in tables(small))
    pairs, ranks = own.pairs, own.cluster.num_ranks
    meter = TensorMeter("cpu")
    with meter:
        vectors = torch.randn(own.items, own.width, requires_grad=True)
        each = torch.arange(pairs)
        rows = Pairs(each, each + pairs, negative=each + 2 * pairs, negative_row=each)
        loss, _ = ContrastiveLoss(0.02, mask_false_negatives=True)(vectors, rows, range(pairs // ranks))
        loss.backward()
    assert 0.5 * own.loss_bytes < meter.peak < own.loss_bytes


def test_several_images_an_item_and_several_own_negatives(small: RunPlan, mini_model_dir: Path) -> None:
    """As a chunk of such items has them; without them, nothing changes."""
    own = ["--hard_negatives", "True", "--global_batch_size", "1024", "--model_name", str(mini_model_dir)]
    workload = parse_cluster(["--images_per_item", "3", "--hard_negatives_per_row", "4"])[1]
    made = make_plan(arguments(*own), small.cluster, workload)
    single = make_plan(arguments(*own), small.cluster, parse_cluster([])[1])
    assert (made.items, made.columns) == (6 * 1024, 5 * 1024)
    assert (single.items, single.columns) == (3 * 1024, 2 * 1024)
    text = workload.text_tokens
    assert made.image_tokens - text == 3 * (single.image_tokens - text)
    assert made.vision_units == 3 * single.vision_units
    assert (
        made.chunk_cost(False).pixels / made.image_rows() == 3 * single.chunk_cost(False).pixels / single.image_rows()
    )
    shown = " ".join(str(part) for part in tables(made))
    assert "items with 3 images of" in shown
    assert "the data have 4 hard negatives per row" in shown
    with pytest.raises(InputError, match="--hard_negatives_per_row 4: has no effect without --hard_negatives true"):
        make_plan(arguments(*own[2:]), small.cluster, workload)


def test_mined_negatives_add_to_the_datas_own(mini_model_dir: Path) -> None:
    flags = ("--hard_negatives", "True", "--mined", "absent", "--mined_negatives", "2", "--global_batch_size", "1024")
    made = plan("--model_name", str(mini_model_dir), "--bf16", "--chunk_tokens", "512", *flags)
    pairs = made.pairs
    assert (made.negatives, made.items, made.columns) == (3, 5 * pairs, 4 * pairs)
    assert "with 3 hard negatives a row:" in " ".join(str(part) for part in tables(made))
    # Enough rows that scores, not embeddings, are most of what the loss takes.
    meter = TensorMeter("cpu")
    with meter:
        vectors = torch.randn(made.items, made.width, requires_grad=True)
        each = torch.arange(pairs)
        negative = torch.arange(2 * pairs, made.items)
        rows = Pairs(each, each + pairs, negative=negative, negative_row=each.repeat_interleave(3))
        loss, _ = ContrastiveLoss(0.02, mask_false_negatives=True)(vectors, rows, range(pairs // 4))
        loss.backward()
    assert 0.5 * made.loss_bytes < meter.peak < made.loss_bytes


def test_the_largest_chunk_fits_and_a_larger_one_does_not(small: RunPlan, mini_model_dir: Path) -> None:
    at_first = small.memory(small.zero)
    memory = (at_first.peak + 7 * at_first.chunk) / 0.9
    found = with_memory(small, memory).memory(small.zero).chunk_tokens
    assert found > small.chunk_tokens
    for tokens, fits in ((found, True), (found + 1024 + small.image_tokens, False)):
        made = plan("--model_name", str(mini_model_dir), "--bf16", "--chunk_tokens", str(tokens), memory=memory / GIB)
        assert (made.memory(made.zero).peak <= made.cluster.usable_memory) == fits


def test_fixed_counts_are_those_of_both_passes(mini_model_dir: Path) -> None:
    """As the step runs them: no larger chunks without a graph, unlike under a token budget without dropout."""
    fixed = plan("--model_name", str(mini_model_dir), "--gc_q_chunk_size", "3", "--gc_p_chunk_size", "4")
    assert (fixed.image_rows(), fixed.text_rows(), fixed.no_grad_factor) == (3, 4, 1.0)
    assert plan("--model_name", str(mini_model_dir)).no_grad_factor == 4.0
    dropout = plan("--model_name", str(mini_model_dir), "--lora")
    assert dropout.no_grad_factor == 1.0


def test_nothing_fits_into_nothing(small: RunPlan) -> None:
    """Nor where chunks would, but the buckets in which gradients are reduced do not."""
    half_a_bucket = with_memory(small, 2 * small.zero.reduce_bucket)
    assert half_a_bucket.memory(half_a_bucket.zero).chunk_tokens == 0
    made = with_memory(small, 1.0)
    assert {each.chunk_tokens for each in made.memories()} == {0}
    assert "no ZeRO stage fits either" in str(next(iter(tables(made))))


def test_kept_graphs_fill_the_memory_and_save_a_forward_pass_each(small: RunPlan) -> None:
    chunks = small.calls.repeat_with_images
    assert small.graphs_that_fit(small.zero) == chunks > 1
    state = small.memory(small.zero).state.in_pass
    for graphs in range(1, chunks):
        needed = state + max(small._activations(small._growth.rows, graphs).values())
        tight = with_memory(small, needed / small.cluster.usable_memory * small.cluster.gpu_memory * (1 + 1e-9))
        assert tight.graphs_that_fit(tight.zero) in (graphs, chunks)  # where graphs are small, pass 1 decides
        assert (
            tight.memory(tight.zero).state.in_pass
            + max(tight._activations(tight._growth.rows, tight.graphs_that_fit(tight.zero)).values())
            <= tight.cluster.usable_memory
        )
    assert with_memory(small, 1.0).graphs_that_fit(small.zero) == 0
    forward = small.model.cost(small.images(small.image_rows()), True, True).forward_flops
    expected = forward / (small.cluster.peak_flops * small.cluster.utilization)
    assert small.seconds_saved(3) == pytest.approx(3 * expected)


def test_traffic_follows_the_chunks(small: RunPlan) -> None:
    """Gradients of bfloat16 weights travel once a chunk; under ZeRO-1, and of float32 weights, once a step."""
    assert small.calls.repeat > 1
    once = small.size.trainable * 4
    in_float32 = dataclasses.replace(small.size, trainable_bytes=4)
    zero1 = dataclasses.replace(small.zero, stage=1)
    for size, zero, times in (
        (small.size, small.zero, small.calls.repeat),
        (small.size, zero1, 1),
        (in_float32, small.zero, 1),
    ):
        moved = collectives(size, zero, 4, 128, small.width, small.calls, fetches=2)
        reduced = next(each for each in moved if each.what.startswith("gradients, reduced"))
        assert reduced.size == times * once
        assert reduced.sent(4) == 2 * reduced.size * 3 / 4


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--gpus", "0"], "--gpus 0"),
        (["--images_per_pair", "3"], "0 to 2"),
        (["--utilization", "2"], "at most 1"),
        (["--images_per_item", "0"], "--images_per_item 0: must be positive"),
        (["--images_per_item", "2", "--images_per_pair", "0"], "no effect with --images_per_pair 0"),
    ],
)
def test_refusals(flags: list[str], remedy: str) -> None:
    with pytest.raises(InputError, match=remedy):
        parse_cluster(flags)


@pytest.mark.parametrize(
    ("workers", "images"), [(0, 0), (1, 16), (2, 16 + 10), (3, 16 + 10 + 6), (4, 32), (8, 32 + 16)]
)
def test_shared_memory_is_that_of_the_chunks_made_ahead(
    workers: int, images: int, small: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's tasks: its mark; in pass 1 16 images, 16 texts; in pass 2 10 and 6 images, 12 and 4 texts.

    A process has one task ahead, and the rank takes one more.
    """
    data = dataclasses.replace(small.settings.data, num_workers=workers)
    monkeypatch.setattr(small, "settings", dataclasses.replace(small.settings, data=data))
    size = small.vision_units * 3 * EDGE * EDGE * 2  # bytes of an image's crops in bfloat16
    assert shared_memory(small) == pytest.approx(images * size * small.cluster.gpus, rel=1e-12)


def test_dry_run_prints_the_plan_without_ranks_or_data(mini_model_dir: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vlm2vec.train", "--dry_run", "--config", "launch/recipes/mini.yaml"),
            *("--model_name", str(mini_model_dir), "--dataset_name", "absent", "--output_dir", "absent"),
            *("--deepspeed", ZERO2, "--gpus", "2", "--gpu_memory", "4"),
        ],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    assert "Fits: ZeRO-2" in done.stdout
    assert not (REPOSITORY / "absent").exists()
