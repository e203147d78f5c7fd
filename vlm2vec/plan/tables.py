"""Formats a plan as tables and text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vlm2vec.messages.terminal import column
from vlm2vec.messages.words import counted
from vlm2vec.plan.estimate import GIB, Memory, RunPlan
from vlm2vec.plan.shared_memory import shared_memory

_TERA, _GIGA = 1e12, 1e9


def tables(plan: RunPlan) -> Iterator[RenderableType]:
    """Yields what the plan program prints, the verdict first."""
    memories = plan.memories()
    yield _verdict(plan, memories)
    yield _heading(plan)
    yield _memory_table(plan, memories)
    yield _chunk_table(plan)
    yield _traffic_table(plan)
    yield _time(plan)
    yield _kept_graphs(plan)
    yield _shared_memory(plan)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}" if size >= 0.05 * GIB else f"{size / GIB:.2f}" if size else "-"


def _heading(plan: RunPlan) -> Text:
    size, cluster, encoder = plan.size, plan.cluster, plan.settings.encoder
    kind = "all weights" if encoder.lora is None else "LoRA" + (" (DoRA)" if encoder.lora.use_dora else "")
    dtype = str(encoder.precision.compute).removeprefix("torch.")
    images, texts = plan.items_a_rank
    with_images = _items_with_images(plan)
    width, height = plan.image_size
    lines = [
        f"{size.total:,} parameters, {size.trainable:,} trainable ({kind}), {dtype}",
        f"{cluster.num_ranks} ranks ({cluster.nodes} x {cluster.gpus}) of {cluster.gpu_memory / GIB:.0f} GiB | global "
        f"batch {plan.pairs:,}{_negatives(plan)}: a rank has {images:.0f} {with_images} of {plan.image_tokens} "
        f"tokens and {texts:.0f} texts of {plan.workload.text_tokens} tokens in {plan.calls.repeat} chunks",
        f"Assumed: {plan.workload.images_per_pair:g} {with_images} a pair of {width} x {height} pixels, "
        f"each with {plan.vision_units} vision units ({plan.model.family.vision_unit_name}); "
        f"{plan.workload.text_tokens} tokens a text; all items distinct{_assumed_negatives(plan)}",
    ]
    return Text("\n".join(lines))


def _items_with_images(plan: RunPlan) -> str:
    number = plan.workload.images_per_item
    return "images" if number == 1 else f"items with {number} images"


def _negatives(plan: RunPlan) -> str:
    if not plan.negatives:
        return ""
    return f" with {counted(plan.negatives, 'hard negative')} a row"


def _assumed_negatives(plan: RunPlan) -> str:
    if not plan.negatives:
        return ""
    number = counted(plan.workload.hard_negatives_per_row, "hard negative")
    own = f" the data have {number} per row," if plan.settings.data.hard_negatives else ""
    return f";{own} hard negatives have images as often as the items of pairs"


def _memory_table(plan: RunPlan, memories: list[Memory]) -> Table:
    parts_of_memory = ("weights", "gradients", "optimizer", "buffers", "chunk", "loss", "peak", "host")
    table = Table(
        column("", "left"),
        *(column(heading) for heading in parts_of_memory),
        column("fits", "center"),
        column("largest\n--chunk_tokens"),
        title="Memory of a rank in GiB",
        caption=_MEMORY_NOTE,
        caption_justify="left",
        title_justify="left",
    )
    for each in memories:
        state = each.state
        fits = each.peak <= plan.cluster.usable_memory
        parts = (state.weights, state.gradients, state.optimizer, state.buffers, each.chunk, each.loss, each.peak)
        table.add_row(
            each.zero.name + (" <" if each.zero == plan.zero else ""),
            *(_gib(part) for part in (*parts, state.host)),
            "yes" if fits else "no",
            f"{each.chunk_tokens:,}" if each.chunk_tokens else "none",
            style="bold" if each.zero == plan.zero else "",
        )
    return table


_MEMORY_NOTE = (
    "< the --deepspeed file. Peak: the most in use at any time (chunk and loss are never in memory together); it must "
    "fit into nine tenths of the GPU. Buffers: gathered weights, gradients in transfer. Host: offloaded state. Checked "
    "against tensors on a CPU (docs/benchmarks.md), not measured on a GPU."
)


def _chunk_table(plan: RunPlan) -> Table:
    table = Table(
        column("", "left"),
        *(column(heading) for heading in ("tokens", "vision units", "pixels", "graph", "peak")),
        title="The largest chunk in GiB: images with text",
        title_justify="left",
    )
    chosen = plan.settings.encoder.gradient_checkpointing
    rows = plan.image_rows()
    kinds = [
        ("pass 2, gradient checkpointing", rows, plan.chunk_cost(True), chosen),
        ("pass 2, all activations kept", rows, plan.chunk_cost(False), not chosen),
        ("pass 1, no graph", plan.encode_rows, plan.encode_cost, True),
    ]
    for name, number, cost, is_chosen in kinds:
        table.add_row(
            name + (" <" if is_chosen else ""),
            f"{number * plan.image_tokens:,}",
            str(number * plan.vision_units),
            _gib(cost.pixels),
            _gib(cost.saved - cost.pixels) if "graph" not in name[8:] else "-",
            _gib(cost.peak),
            style="bold" if is_chosen else "",
        )
    return table


def _traffic_table(plan: RunPlan) -> Table:
    ranks = plan.cluster.num_ranks
    table = Table(
        *(column("", "left"), column("tensor, GiB"), column("sent (ring), GiB")),
        title=f"Network traffic per step and rank, {plan.zero.name}",
        title_justify="left",
    )
    moved = plan.traffic(plan.zero)
    for each in moved:
        table.add_row(each.what, _gib(each.size), _gib(each.sent(ranks)))
    others = ", ".join(
        f"{zero.name}: {sum(each.sent(ranks) for each in plan.traffic(zero)) / GIB:.1f}"
        for zero in plan.zero.variants()
        if zero.stage != plan.zero.stage and not zero.offload_optimizer
    )
    table.add_row("sum", "", _gib(sum(each.sent(ranks) for each in moved)), style="bold")
    table.caption = f"Sent with other stages: {others} GiB"
    return table


def _time(plan: RunPlan) -> Text:
    cluster = plan.cluster
    run, useful = plan.flops
    computing, network = plan.seconds(plan.zero)
    slowest = (
        f"{cluster.gpu_bandwidth / _GIGA:.0f} GB/s between GPUs"
        if cluster.nodes == 1
        else f"{cluster.ring_bandwidth / _GIGA:.0f} GB/s between nodes"
    )
    # The length of an epoch depends on the data, which a plan does not read.
    steps = plan.settings.schedule.max_steps or 1000
    return Text(
        f"{run / _TERA:,.0f} TFLOP per rank and step; one plain forward and backward pass would be "
        f"{useful / _TERA:,.0f} ({useful / run:.0%})\n"
        f"Step: {max(computing, network):.1f} to {computing + network:.1f} s (computing {computing:.1f}, network "
        f"{network:.1f}, overlapped or not): {plan.pairs / (computing + network):,.0f} pairs/s or more, "
        f"{steps:,} steps in {steps * (computing + network) / 3600:.1f} h at most\n"
        f"Assumed: {cluster.utilization:.0%} of {cluster.peak_flops / _TERA:,.0f} TFLOP/s on what runs (MFU "
        f"{cluster.utilization * useful / run:.0%}); {slowest}; no waiting for data"
    )


def _kept_graphs(plan: RunPlan) -> Text:
    """What `--keep_graphs auto` can save with each ZeRO stage; the times above do not include it."""
    parts = []
    for zero in plan.zero.variants():
        if not zero.offload_optimizer:
            graphs = plan.graphs_that_fit(zero)
            parts.append(f"{zero.name} {graphs} ({plan.seconds_saved(graphs):.1f} s)")
    return Text(
        f"Graphs that fit in memory from pass 1 to pass 2, of {plan.calls.repeat_with_images} chunks with images, and "
        f"the computing time that they save per step: {', '.join(parts)}"
    )


def _shared_memory(plan: RunPlan) -> Text:
    workers = plan.settings.data.num_workers
    return Text(
        f"Shared memory (/dev/shm) per node: at most {_gib(shared_memory(plan))} GiB for {plan.cluster.gpus} "
        f"ranks with {workers} loader processes each"
    )


def _verdict(plan: RunPlan, memories: list[Memory]) -> Text:
    chosen = next(each for each in memories if each.zero == plan.zero)
    usable = plan.cluster.usable_memory
    if chosen.peak <= usable:
        return Text(
            f"Fits: {chosen.zero.name} with chunks of {plan.chunk_tokens:,} tokens takes {_gib(chosen.peak)} of "
            f"{_gib(usable)} GiB; up to --chunk_tokens {chosen.chunk_tokens} fits"
        )
    if chosen.chunk_tokens:
        return Text(f"Does not fit as it is: use --chunk_tokens {chosen.chunk_tokens}")
    fitting = [each for each in memories if each.chunk_tokens]
    remedy = (
        f"{fitting[0].zero.name} fits with --chunk_tokens {fitting[0].chunk_tokens}"
        if fitting
        else "no ZeRO stage fits either: use more GPUs, --lora or smaller buckets"
    )
    return Text(f"Does not fit with any --chunk_tokens; {remedy}")
