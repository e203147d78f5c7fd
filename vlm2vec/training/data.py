"""A run's data: which subsets, in what order, the same on every rank."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from vlm2vec.batches import GlobalOrder
from vlm2vec.batches.groups import SUBSET
from vlm2vec.batches.mixture import BLOCK, BLOCK_SAMPLES
from vlm2vec.errors import InputError
from vlm2vec.ranks import gather_from_all
from vlm2vec.shards import Cache, DamagedSampleError, ShardSet
from vlm2vec.training.settings import DataSettings


@dataclass(frozen=True)
class RunData:
    """A run's samples and the order in which they come."""

    shards: ShardSet
    order: GlobalOrder

    @property
    def fingerprints(self) -> dict[str, str]:
        """What the data are: the same values are the same samples in the same order."""
        return {"shards": self.shards.fingerprint, "order": self.order.digest}


def open_shards(settings: DataSettings) -> ShardSet:
    """The shards that the flags name."""
    folder = {} if settings.cache_dir is None else {"folder": settings.cache_dir}
    return ShardSet.open(
        settings.dataset_name,
        settings.subsets,
        block_samples=BLOCK_SAMPLES if settings.mixture.order == BLOCK else 1,
        cache=Cache(max_bytes=settings.cache_bytes, **folder),
    )


def open_data(settings: DataSettings, rank: int) -> RunData:
    """The shards and their order; one sample is read, so that data out of reach are found here.

    Raises:
        InputError: The shards cannot be reached or used.
    """
    shards = open_shards(settings)
    order = global_order(settings, shards)
    subset = shards.subsets[rank % len(shards.subsets)]
    try:
        shards.read(subset, rank % shards.num_samples[subset])
    except DamagedSampleError as error:
        # A damaged sample is replaced when its turn comes.
        if isinstance(error.__cause__, OSError):
            raise InputError(f"the shards' files are there but cannot be read: {error}") from error
    return RunData(shards, order)


def global_order(settings: DataSettings, shards: ShardSet) -> GlobalOrder:
    """The order in which the shards' samples come."""
    return GlobalOrder(
        shards.num_samples,
        settings.global_batch_size,
        settings.seed,
        settings.mixture,
        (lambda name: shards.columns(name)["positive_hash"]) if settings.mixture.distinct_positives else None,
    )


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


def order_remarks(order: GlobalOrder) -> str:
    """What units draw from, and what an epoch does not deliver."""
    remarks = []
    if order.mixture.groups != SUBSET:
        groups = order.passes.groups.names
        alone = [name for name in groups if name in order.subsets]
        remarks.append(f"batches of {', '.join(name for name in groups if name not in alone)}")
        if alone:
            remarks.append(f"subsets without meta-task, in batches of their own: {', '.join(alone)}")
    if order.covers_each_sample_once and order.remainder:
        remarks.append(f"an epoch leaves out {order.remainder:,} pairs, different ones each time")
    if order.mixture.distinct_positives:
        remarks.append(f"{order.duplicate_targets(0):,} pairs of epoch 0 share a target with one of their batch")
    return "".join(f" | {remark}" for remark in remarks)
