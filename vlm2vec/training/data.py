"""From a run's arguments to its data: which subsets, in what order, the same on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vlm2vec.batches import GlobalOrder, Mixture
from vlm2vec.batches.mixture import BLOCK, BLOCK_SAMPLES
from vlm2vec.errors import InputError
from vlm2vec.ranks import gather_from_all
from vlm2vec.shards import Cache, DamagedSampleError, ShardSet
from vlm2vec.training.flags.run import RunArguments


def open_shards(arguments: RunArguments) -> ShardSet:
    """The shards that the arguments name."""
    data = arguments.data
    folder = {} if data.cache_dir is None else {"folder": Path(data.cache_dir)}
    return ShardSet.open(
        data.dataset_name,
        None if data.subset_name == ["all"] else data.subset_name,
        block_samples=BLOCK_SAMPLES if data.order == BLOCK else 1,
        cache=Cache(max_bytes=round(data.cache_gb * 1e9), **folder),
    )


def open_data(arguments: RunArguments, num_ranks: int, rank: int) -> tuple[ShardSet, GlobalOrder]:
    """The shards and their order; one sample is read, so that data out of reach are found here.

    Raises:
        InputError: The shards cannot be reached or used.
    """
    shards = open_shards(arguments)
    order = global_order(arguments, shards, num_ranks)
    subset = shards.subsets[rank % len(shards.subsets)]
    try:
        shards.read(subset, rank % shards.num_samples[subset])
    except DamagedSampleError as error:
        # A damaged sample is replaced when its turn comes.
        if isinstance(error.__cause__, OSError):
            raise InputError(f"the shards' files are there but cannot be read: {error}") from error
    return shards, order


def global_order(arguments: RunArguments, shards: ShardSet, num_ranks: int) -> GlobalOrder:
    """The order in which the shards' samples come."""
    data = arguments.data
    mixture = Mixture(
        unit=data.homogeneous_batch_size,
        weights=_weights(data.mixture_weights) if data.mixture_weights else None,
        temperature=data.mixture_temperature,
        max_samples=data.num_sample_per_subset,
        first_samples=data.first_n,
        order=data.order,
        distinct_positives=data.no_duplicate_positives,
    )
    return GlobalOrder(
        shards.num_samples,
        arguments.global_batch_size(num_ranks),
        arguments.training.seed,
        mixture,
        (lambda name: shards.columns(name)["positive_hash"]) if mixture.distinct_positives else None,
    )


def _weights(words: Sequence[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            weight = float(number)
        except ValueError:
            raise InputError(f"--mixture_weights {word}: expected SUBSET=WEIGHT, such as NIGHTS=2") from None
        if name in weights:
            raise InputError(f"--mixture_weights {name}: given twice")
        weights[name] = weight
    return weights


def compare_data(shards: ShardSet, order: GlobalOrder) -> None:
    """Stops all ranks, before anything runs, if they do not hold the same data in the same order (a collective).

    Raises:
        InputError: The manifest or the order of a rank differs; the message names the rank.
    """
    first, *others = gather_from_all(hashlib.sha256(f"{shards.fingerprint} {order.digest}".encode()).hexdigest())
    mismatched = [rank for rank, digest in enumerate(others, start=1) if digest != first]
    if mismatched:
        raise InputError(
            f"rank(s) {', '.join(map(str, mismatched))} and rank 0 hold different shards or flags: --dataset_name must "
            "have the same manifest.json on every node, and every rank the same flags"
        )


def fingerprints(shards: ShardSet, order: GlobalOrder) -> dict[str, str]:
    """What the data of a run are: the same values are the same samples in the same order."""
    return {"shards": shards.fingerprint, "order": order.digest}


def order_remarks(order: GlobalOrder) -> str:
    """What an epoch does not deliver."""
    remarks = []
    if order.covers_each_sample_once and order.remainder:
        remarks.append(f"an epoch leaves out {order.remainder:,} pairs, different ones each time")
    if order.mixture.distinct_positives:
        remarks.append(f"{order.duplicate_targets(0):,} pairs of epoch 0 share a target with one of their batch")
    return "".join(f" | {remark}" for remark in remarks)
