"""Writes a subset's file from its ranked targets: hard negatives, false negatives, clusters, and a summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.mining.clusters import Graph, cut, row_of_target
from data_prep.mining.negatives import Chosen, KnownPositives, ascending, choose, lists_of
from data_prep.mining.rank import NO_TARGET, Ranked, RankStore, SubsetTargets, unit_vectors
from data_prep.mining.settings import SubsetSettings
from vlm2vec.mined.format import NO_CLUSTER, MinedRecord, MinedSubset, write_subset

# Number of clusters, evenly spaced, whose similarity inside is measured.
_SAMPLED_CLUSTERS = 256
# Decimal places of the summary's numbers: few enough that rounding errors do not show.
_DECIMALS = 4


@dataclass(frozen=True)
class _Block:
    """A block of rows, with its candidates and the result of the rules."""

    rows: range
    ranked: Ranked
    chosen: Chosen


def mine_subset(
    name: str,
    targets: SubsetTargets,
    store: RankStore,
    vectors: npt.NDArray[np.float32],
    settings: SubsetSettings,
    output_dir: Path,
) -> MinedRecord:
    """Writes the file of a subset; the same rankings and settings give the same bytes.

    Args:
        name: The subset's name.
        targets: Its rows and targets.
        store: The store of its ranked blocks.
        vectors: The vectors of all encoded items, float32 (items, hidden), memory-mapped.
        settings: The subset's settings.
        output_dir: The folder for the file.

    Raises:
        InputError: A ranked block is damaged.
    """
    known = KnownPositives(targets)
    blocks = []
    for number, rows in enumerate(targets.blocks()):
        ranked = store.read(name, number, len(rows), len(targets.target))
        is_known = known.mask(targets.query[rows.start : rows.stop], ranked.targets)
        blocks.append(_Block(rows, ranked, choose(ranked, is_known, settings)))
    # In the file a target is identified by the first row that has it.
    first = [targets.first[block.ranked.targets] for block in blocks]
    negatives = lists_of([block.chosen.negative for block in blocks], first)
    scores = np.concatenate([block.ranked.scores[block.chosen.negative] for block in blocks])
    false_negatives = ascending(lists_of([block.chosen.false for block in blocks], first))
    cluster = np.full(len(targets), NO_CLUSTER, dtype=np.int32)
    inside: dict[str, Any] = {}
    if settings.cluster_size and settings.cluster_method:
        graph = _graph(blocks, targets)
        cluster = cut(graph, settings.cluster_size, settings.cluster_method)
        inside = {
            "edges_inside_clusters": round(graph.kept_inside(cluster), _DECIMALS),
            **_hardness(cluster, settings.cluster_size, targets, vectors),
        }
    positive = np.concatenate([block.ranked.positive for block in blocks])
    mined = MinedSubset(positive, negatives, scores, false_negatives, cluster)
    summary = {**_summary(mined, blocks, targets), **inside}
    return write_subset(output_dir, name, mined, asdict(settings), summary)


def _graph(blocks: Sequence[_Block], targets: SubsetTargets) -> Graph:
    """The graph in which each row is connected to one row for each of its possible negatives."""
    rows, hard = [], []
    for block in blocks:
        own, place = np.nonzero(block.chosen.eligible)
        rows.append((own + block.rows.start).astype(np.int32))
        hard.append(block.ranked.targets[own, place])
    all_rows, all_hard = np.concatenate(rows), np.concatenate(hard)
    return Graph.from_pairs(all_rows, row_of_target(targets, all_rows, all_hard), len(targets))


def _summary(mined: MinedSubset, blocks: Sequence[_Block], targets: SubsetTargets) -> dict[str, Any]:
    """The numbers that a user needs to judge the result before training on it."""
    candidates = sum(int((block.ranked.targets != NO_TARGET).sum()) for block in blocks)
    eligible = sum(int(block.chosen.eligible.sum()) for block in blocks)
    skipped = candidates - eligible - len(mined.false_negatives.values)
    # A false negative among the skipped ranks counts only once.
    return {
        "num_targets": len(targets.target),
        "num_candidates": candidates,
        "num_skipped": skipped,
        "rows_without_negatives": int((np.diff(mined.negatives.offsets) == 0).sum()),
        "rows_left_over": int((mined.cluster == NO_CLUSTER).sum()),
        "mean_positive_score": _mean(mined.positive_score),
        "mean_negative_score": _mean(mined.negative_scores),
    }


def _hardness(
    cluster: npt.NDArray[np.int32], size: int, targets: SubsetTargets, vectors: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """Mean cosine of a query with the other targets of its cluster, and the same for clusters of random rows."""
    by_cluster = np.argsort(cluster, kind="stable")[int((cluster == NO_CLUSTER).sum()) :].reshape(-1, size)
    shuffled = np.random.default_rng(0).permutation(len(cluster))[: by_cluster.size].reshape(-1, size)
    step = max(1, len(by_cluster) // _SAMPLED_CLUSTERS)
    means = {}
    for name, groups in (("similarity_in_clusters", by_cluster), ("similarity_of_random_rows", shuffled)):
        found = []
        for rows in groups[::step]:
            queries = unit_vectors(vectors, targets.query[rows]).astype(np.float64)
            own = targets.own[rows]
            scores = queries @ unit_vectors(vectors, targets.target[own]).astype(np.float64).T
            found.append(scores[own[:, None] != own])
        means[name] = _mean(np.concatenate(found)) if found else None
    return means


def _mean(values: npt.NDArray[np.floating]) -> float | None:
    return round(float(values.mean(dtype=np.float64)), _DECIMALS) if len(values) else None
