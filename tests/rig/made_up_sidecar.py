"""A sidecar of mining without a teacher: random lists and clusters, made-up scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlm2vec.mined.format import Lists, Mined, MinedSubset, Teacher, write_subset
from vlm2vec.shards import ShardSet

CLUSTER_SIZE = 4
_MOST_NEGATIVES, _MOST_FALSE_NEGATIVES = 4, 3


def write_sidecar(root: Path, shards: ShardSet, seed: int = 0) -> Path:
    """Writes a sidecar of all subsets of some shards; every fifth row belongs to no cluster."""
    root.mkdir(parents=True)
    records = {name: write_subset(root, name, made_up(size, seed), {}, {}) for name, size in shards.num_samples.items()}
    Mined(root, shards.fingerprint, Teacher("none", "00"), CLUSTER_SIZE, records).write()
    return root


def made_up(size: int, seed: int) -> MinedSubset:
    """What was mined of a subset: rows with no, one and several negatives and false negatives."""
    random = np.random.default_rng([seed, size])
    negatives, false_negatives = [], []
    for row in range(size):
        drawn = [each for each in random.permutation(size).tolist() if each != row]
        count, false_count = int(random.integers(_MOST_NEGATIVES + 1)), int(random.integers(_MOST_FALSE_NEGATIVES + 1))
        negatives.append(drawn[:count])
        false_negatives.append(sorted(drawn[count : count + false_count]))
    scores = [np.sort(random.uniform(-1, 1, len(row)))[::-1] for row in negatives]
    cluster = np.full(size, -1, np.int32)
    members = random.permutation(size)[: size * 4 // 5 // CLUSTER_SIZE * CLUSTER_SIZE]
    cluster[members] = np.arange(len(members)) // CLUSTER_SIZE
    return MinedSubset(
        positive_score=random.uniform(-1, 1, size).astype(np.float32),
        negatives=_joined(negatives),
        negative_scores=np.concatenate(scores).astype(np.float32),
        false_negatives=_joined(false_negatives),
        cluster=cluster,
    )


def _joined(lists: list[list[int]]) -> Lists:
    values = np.array([each for row in lists for each in row], np.int32)
    return Lists(values, np.cumsum([0, *map(len, lists)]))
