"""What a teacher mined from shards, for `data_prep.inspect`: numbers, and the negatives of a few rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich import box
from rich.markup import escape
from rich.table import Table

from data_prep.statistics import Cosines, Histogram, spread
from vlm2vec.errors import InputError
from vlm2vec.messages.terminal import column
from vlm2vec.messages.words import counted
from vlm2vec.mined.format import Mined, MinedRecord, MinedSubset
from vlm2vec.shards import ShardSet
from vlm2vec.shards.schema import Item


@dataclass(frozen=True)
class MinedNegative:
    """A mined hard negative of a row.

    Attributes:
        rank: Its place among the row's hard negatives, from 1, the hardest first.
        score: The teacher's cosine with the query.
        margin: How far the positive's cosine is above it; negative where the teacher prefers the negative.
        target: The item; a message in the place of one that cannot be read.
    """

    rank: int
    score: float
    margin: float
    target: Item | str


@dataclass(frozen=True)
class MinedExample:
    """What was mined of one row.

    Attributes:
        positive_score: The teacher's cosine of query and target.
        negatives: The hardest ones.
        num_negatives: How many there are.
        num_false_negatives: Targets that do not count as negatives of the row.
        cluster: Number of the row's cluster; -1: none.
    """

    positive_score: float
    negatives: tuple[MinedNegative, ...]
    num_negatives: int
    num_false_negatives: int
    cluster: int


@dataclass(frozen=True)
class MinedStatistics:
    """What was mined of a subset.

    Attributes:
        positives: Cosines of queries and their targets.
        hardest: Cosines of queries and their hardest negatives.
        margins: Differences of the two.
        negatives_per_row: How many hard negatives rows have, without rows that have none.
        rows_without: Rows that have none.
        num_rows, num_negatives, num_false_negatives, num_clusters, cluster_size: Counts.
        left_over: Rows of no cluster.
        examples: Of the rows that `SubsetStatistics.examples` holds.
    """

    positives: Cosines
    hardest: Cosines
    margins: Cosines
    negatives_per_row: Histogram
    rows_without: int
    num_rows: int
    num_negatives: int
    num_false_negatives: int
    num_clusters: int
    cluster_size: int
    left_over: int
    examples: tuple[MinedExample, ...]

    @property
    def clusters(self) -> str:
        """The clusters' sizes. All have the same one, so that there is no distribution to show."""
        if not self.num_clusters:
            return "no clusters"
        left = f", {counted(self.left_over, 'row')} left over" if self.left_over else ", no row left over"
        return f"{counted(self.num_clusters, 'cluster')}, each of {counted(self.cluster_size, 'row')}{left}"


def open_mined(folder: Path, shards: ShardSet) -> Mined:
    """The sidecar of some shards; it may lack subsets.

    Raises:
        InputError: Not mined, damaged, or mined from other shards.
    """
    names = [name for name in Mined.read(folder).subsets if name in shards.num_samples]
    return Mined.open(folder, shards.fingerprint, {name: shards.num_samples[name] for name in names})


def mined_statistics(
    mined: Mined, shards: ShardSet, name: str, num_examples: int, num_negatives: int
) -> MinedStatistics | None:
    """Collects what was mined of a subset; None: it was not mined.

    Args:
        mined: The sidecar.
        shards: The data that it belongs to.
        name: The subset.
        num_examples: How many rows to show.
        num_negatives: Most negatives of a row to show.

    Raises:
        InputError: The subset's file is damaged.
    """
    if name not in mined.subsets:
        return None
    found, record = mined.subset(name), mined.subsets[name]
    counts = np.diff(found.negatives.offsets)
    having = np.flatnonzero(counts)
    hardest = found.negative_scores[found.negatives.offsets[having]]
    return MinedStatistics(
        positives=Cosines.of(found.positive_score),
        hardest=Cosines.of(hardest),
        margins=Cosines.of(found.positive_score[having] - hardest),
        negatives_per_row=Histogram.of(counts[having]),
        rows_without=len(counts) - len(having),
        num_rows=len(found),
        num_negatives=record.num_negatives,
        num_false_negatives=record.num_false_negatives,
        num_clusters=record.num_clusters,
        cluster_size=mined.cluster_size,
        left_over=_left_over(found, record),
        examples=tuple(
            _example(found, shards, name, position, num_negatives) for position in spread(len(found), num_examples)
        ),
    )


def _left_over(found: MinedSubset, record: MinedRecord) -> int:
    return int((found.cluster < 0).sum()) if record.num_clusters else 0


def _example(found: MinedSubset, shards: ShardSet, name: str, position: int, num_negatives: int) -> MinedExample:
    first = int(found.negatives.offsets[position])
    positions: npt.NDArray[np.int32] = found.negatives[position]
    positive = float(found.positive_score[position])
    negatives = []
    for place, negative in enumerate(positions[:num_negatives].tolist()):
        score = float(found.negative_scores[first + place])
        target = _target(shards, name, negative)
        negatives.append(MinedNegative(place + 1, score, positive - score, target))
    return MinedExample(
        positive,
        tuple(negatives),
        len(positions),
        len(found.false_negatives[position]),
        int(found.cluster[position]),
    )


def _target(shards: ShardSet, name: str, position: int) -> Item | str:
    try:
        return shards.read(name, position).positive
    except InputError as error:
        return str(error)


def mined_table(statistics: Iterable[tuple[str, MinedStatistics | None]]) -> Table:
    """A line for each subset, for a terminal.

    Args:
        statistics: Name of each subset, and what was mined of it.
    """
    table = Table(
        column("subset", "left"),
        *(column("negatives\nper row"), column("rows\nwithout"), column("false\nnegatives")),
        *(column("cosine\npositive"), column("hardest\nnegative"), column("margin\nmedian")),
        column("clusters", "left"),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name, each in statistics:
        if each is None:
            table.add_row(escape(name), *[""] * 6, "not mined")
            continue
        table.add_row(
            escape(name),
            f"{each.num_negatives / each.num_rows:.1f}",
            f"{each.rows_without:,}",
            f"{each.num_false_negatives:,}",
            *(cosines.shown(cosines.median) for cosines in (each.positives, each.hardest, each.margins)),
            each.clusters,
        )
    return table
