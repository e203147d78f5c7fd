"""Opens a run's data: shards, mined sidecar and global order, identical on every rank."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from vlm2vec.batches import GlobalOrder
from vlm2vec.batches.clusters import Clusters
from vlm2vec.batches.mixture import BLOCK_SAMPLES
from vlm2vec.choices import BLOCK, SUBSET
from vlm2vec.errors import InputError
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.mined.format import MINED_NAME, Mined
from vlm2vec.mined.rows import MinedRows
from vlm2vec.ranks import gather_from_all
from vlm2vec.ranks.agreement import listed_ranks
from vlm2vec.shards import Cache, DamagedSampleError, ShardSet
from vlm2vec.shards.columns import image_sizes
from vlm2vec.shards.schema import NEGATIVE, POSITIVE, QUERY
from vlm2vec.training.settings import DataSettings, MinedSettings


@dataclass(frozen=True)
class RunData:
    """A run's samples and their order.

    Attributes:
        shards: The samples.
        order: Their global order.
        mined: A teacher's hard negatives, false negatives and scores, as far as the run uses them; else None.
        sidecar: Fingerprint of the mined sidecar; None without one.
    """

    shards: ShardSet
    order: GlobalOrder
    mined: MinedRows | None = None
    sidecar: str | None = None

    @property
    def fingerprints(self) -> dict[str, str]:
        """Identity of the data: equal values mean the same samples in the same order."""
        sidecar = {} if self.sidecar is None else {"mined": self.sidecar}
        return {"shards": self.shards.fingerprint, "order": self.order.digest, **sidecar}


def open_shards(settings: DataSettings) -> ShardSet:
    """Opens the shards that the settings name."""
    folder = {} if settings.cache_dir is None else {"folder": settings.cache_dir}
    return ShardSet.open(
        settings.dataset_name,
        settings.subsets,
        block_samples=BLOCK_SAMPLES if settings.mixture.order == BLOCK else 1,
        cache=Cache(max_bytes=settings.cache_bytes, **folder),
    )


def open_data(settings: DataSettings, rank: int) -> RunData:
    """Opens the shards and their order; reads one sample, so that unreachable data fail here.

    Raises:
        InputError: The shards cannot be reached or used.
    """
    shards = open_shards(settings)
    sidecar = None if settings.mined is None else open_sidecar(settings.mined, shards)
    order = global_order(settings, shards, sidecar)
    subset = shards.subsets[rank % len(shards.subsets)]
    try:
        shards.read(subset, rank % shards.num_samples[subset])
    except DamagedSampleError as error:
        # A damaged sample is no reason to stop: it is replaced when a batch needs it.
        if isinstance(error.__cause__, OSError):
            raise InputError(f"the shards' files exist but cannot be read: {error}") from error
    if sidecar is None or settings.mined is None:
        return RunData(shards, order)
    return RunData(shards, order, mined_rows(settings.mined, sidecar, shards), sidecar.fingerprint)


def open_sidecar(settings: MinedSettings, shards: ShardSet) -> Mined:
    """Opens what was mined from the shards.

    Raises:
        InputError: There is none, it is of different shards or subsets, or it lacks what the flags use.
    """
    sidecar = Mined.open(settings.folder, shards.fingerprint, shards.num_samples)
    path = sidecar.root / MINED_NAME
    records = [sidecar.subsets[name] for name in shards.subsets]
    if settings.clusters and not sidecar.cluster_size:
        raise InputError(f"{path}: no clusters were mined; mine them, or leave out --mined_clusters")
    if settings.negatives and not any(record.num_negatives for record in records):
        raise InputError(f"{path}: no hard negatives were mined; mine them, or leave out --mined_negatives")
    if settings.false_negatives and not any(record.num_false_negatives for record in records):
        raise InputError(
            f"{path}: the teacher found no false negatives; leave out --false_negative_source, or mine with a "
            "different margin"
        )
    return sidecar


def largest_of_several(
    shards: ShardSet, inputs: ItemEncoderInputs, hard_negatives: bool
) -> tuple[tuple[int, int], ...]:
    """Width and height in pixels of each image of the most expensive item with several images.

    Args:
        shards: The data.
        inputs: Computes the cost of an image.
        hard_negatives: Whether the run uses hard negatives.

    Returns:
        An empty tuple if no item has several images.
    """
    largest: tuple[int, tuple[tuple[int, int], ...]] = (0, ())
    without_images = inputs.cost(0, ())
    for columns in map(shards.columns, shards.subsets):
        for side in (QUERY, POSITIVE, NEGATIVE) if hard_negatives else (QUERY, POSITIVE):
            starts = columns[f"{side}_image_starts"].astype(np.int64)
            several = np.flatnonzero(np.diff(starts) > 1)
            if not len(several):
                continue
            sizes = np.stack([columns[f"{side}_widths"], columns[f"{side}_heights"]], axis=1)
            different, numbers = np.unique(sizes, axis=0, return_inverse=True)
            tokens = np.array(
                [inputs.cost(0, [(width, height)]) - without_images for width, height in different.tolist()]
            )
            ends = np.concatenate([[0], np.cumsum(tokens[numbers.ravel()])])
            costs = ends[starts[several + 1]] - ends[starts[several]]
            item = several[[int(np.argmax(costs))]]
            largest = max(largest, (int(costs.max()), image_sizes(columns, side, item)[0]))
    return largest[1]


def mined_rows(settings: MinedSettings, sidecar: Mined, shards: ShardSet) -> MinedRows | None:
    """A teacher's data for the rows of a batch; None if the run uses only its clusters.

    Raises:
        InputError: A file is damaged.
    """
    if not (settings.negatives or settings.false_negatives or settings.scores):
        return None
    subsets = tuple(sidecar.subset(name) for name in shards.subsets)
    return MinedRows(subsets, settings.negatives, settings.false_negatives, settings.scores)


def global_order(settings: DataSettings, shards: ShardSet, sidecar: Mined | None = None) -> GlobalOrder:
    """The global order of the shards' samples.

    Raises:
        InputError: The flags do not fit the data, or a file of the sidecar is damaged.
    """
    clusters = None
    if sidecar is not None and settings.mined is not None and settings.mined.clusters:
        numbers = {name: sidecar.subset(name).cluster for name in shards.subsets}
        clusters = Clusters.of(numbers, sidecar.cluster_size)
    return GlobalOrder(
        shards.num_samples,
        settings.global_batch_size,
        settings.seed,
        settings.mixture,
        (lambda name: shards.columns(name)["positive_hash"]) if settings.mixture.distinct_positives else None,
        clusters,
    )


def compare_data(shards: ShardSet, order: GlobalOrder, sidecar: str | None = None) -> None:
    """Stops all ranks before anything runs if they do not have the same data in the same order (a collective).

    Raises:
        InputError: The manifest, the order or the sidecar of a rank differs; the message names the rank.
    """
    facts = f"{shards.fingerprint} {order.digest} {sidecar}"
    first, *others = gather_from_all(hashlib.sha256(facts.encode()).hexdigest())
    mined = "" if sidecar is None else ", --mined the same mined.json"
    mismatched = [rank for rank, digest in enumerate(others, start=1) if digest != first]
    if mismatched:
        raise InputError(
            f"{listed_ranks(mismatched)} and rank 0 hold different shards or flags: --dataset_name must "
            f"have the same manifest.json on every node{mined}, and every rank the same flags"
        )


def order_remarks(order: GlobalOrder) -> str:
    """Remarks for the log about groups of subsets, mined clusters, an epoch's remainder and duplicate targets."""
    remarks = []
    if order.mixture.groups != SUBSET:
        groups = order.passes.groups.names
        alone = [name for name in groups if name in order.subsets]
        remarks.append(f"batches of {', '.join(name for name in groups if name not in alone)}")
        if alone:
            remarks.append(f"subsets without a meta-task, in separate batches: {', '.join(alone)}")
    if order.clusters is not None:
        clusters = order.clusters
        remarks.append(
            f"{sum(clusters.counts):,} mined clusters of {clusters.size} pairs, {clusters.left_over:,} pairs outside "
            "clusters in separate units"
        )
    if order.covers_each_sample_once and order.remainder:
        remarks.append(f"each epoch leaves out {order.remainder:,} pairs, which differ from epoch to epoch")
    if order.mixture.distinct_positives:
        remarks.append(f"{order.duplicate_targets(0):,} pairs of epoch 0 share a target with a pair of their batch")
    return "".join(f" | {remark}" for remark in remarks)
