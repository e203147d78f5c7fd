"""The settings of mining, and what they amount to for each subset."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlm2vec.errors import InputError
from vlm2vec.mmeb import META_TASKS, meta_task_of

ClusterMethod = Literal["metis", "greedy"]
METIS, GREEDY = CLUSTER_METHODS = ("metis", "greedy")

# B3 (https://arxiv.org/abs/2505.11293): how many of each query's 100 nearest targets are likely false negatives.
NUM_CANDIDATES = 100
SKIP_RANKS = {"classification": 0, "vqa": 70, "retrieval": 30, "grounding": 30}
# Subsets that belong to no known benchmark are treated like retrieval.
_SKIP_UNKNOWN = 30
CLUSTER_SIZE = 32
NUM_NEGATIVES = 8


@dataclass(frozen=True)
class SkipRanks:
    """How many of the nearest targets are skipped.

    Attributes:
        everywhere: The number for subsets without an entry in `by_name`; None: B3's numbers.
        by_name: Numbers by subset or meta-task.
    """

    everywhere: int | None
    by_name: dict[str, int]

    @staticmethod
    def parse(words: Sequence[str]) -> SkipRanks:
        """Parses words such as "30", "vqa=70" and "WebQA=10".

        Raises:
            InputError: A word has a different form, or a name occurs twice.
        """
        everywhere: int | None = None
        by_name: dict[str, int] = {}
        for word in words:
            name, equals, number = word.rpartition("=")
            if not number.isascii() or not number.isdigit() or bool(name) != bool(equals):
                raise InputError(f"--skip_ranks {word}: expected a number, META_TASK=number or SUBSET=number")
            if name in by_name or (not name and everywhere is not None):
                raise InputError(f"--skip_ranks {word}: {name or 'a number without a name'} is given twice")
            if name:
                by_name[name] = int(number)
            else:
                everywhere = int(number)
        return SkipRanks(everywhere, by_name)

    def refuse_unused(self, subsets: Sequence[str]) -> None:
        """Refuses names that match neither a subset nor the meta-task of a subset.

        Raises:
            InputError: There is such a name.
        """
        used = {*subsets, *(task for name in subsets if (task := meta_task_of(name)))}
        for name in self.by_name:
            if name not in used:
                kind = "no subset that is mined has this meta-task" if name in META_TASKS else "no such subset is mined"
                raise InputError(f"--skip_ranks {name}={self.by_name[name]}: {kind}; there are {', '.join(subsets)}")

    def of(self, subset: str, num_targets: int, num_candidates: int) -> int:
        """The number for a subset.

        B3's numbers are meant for `NUM_CANDIDATES` candidates; in a subset with fewer, the same share is skipped.

        Args:
            subset: The subset's name.
            num_targets: Number of distinct targets of the subset.
            num_candidates: Number of candidates per query.
        """
        task = meta_task_of(subset)
        for name in (subset, task):
            if name is not None and name in self.by_name:
                return self.by_name[name]
        if self.everywhere is not None:
            return self.everywhere
        share = (SKIP_RANKS[task] if task is not None else _SKIP_UNKNOWN) / NUM_CANDIDATES
        return int(share * max(0, min(num_candidates, num_targets - 1)))


@dataclass(frozen=True)
class MiningSettings:
    """The settings that the flags of `data_prep.mine` give.

    Attributes:
        skip_ranks: How many of the nearest targets are skipped.
        margin: Targets that score above the positive's score minus this are false negatives; None: no margin.
        num_negatives: Maximum number of hard negatives per row.
        num_candidates: Number of candidates per query, the nearest targets.
        cluster_size: Number of rows per cluster; 0: no clusters.
        cluster_method: One of `CLUSTER_METHODS`.
    """

    skip_ranks: SkipRanks
    margin: float | None
    num_negatives: int
    num_candidates: int
    cluster_size: int
    cluster_method: str

    def refuse_impossible(self) -> None:
        """Refuses settings that contradict each other, or that need a package that is not installed.

        Raises:
            InputError: The message names the flag and a remedy.
        """
        if self.margin is not None and not -2 <= self.margin <= 2:
            raise InputError(f"--margin {self.margin}: a difference of cosines is between -2 and 2")
        if self.cluster_size == 1:
            raise InputError("--cluster_size 1: a cluster needs at least 2 rows; 0 makes no clusters")
        for name, skipped in ((None, self.skip_ranks.everywhere), *self.skip_ranks.by_name.items()):
            if skipped is not None and skipped >= self.num_candidates:
                raise InputError(
                    f"--skip_ranks {f'{name}=' if name else ''}{skipped}: leaves none of --num_candidates "
                    f"{self.num_candidates}"
                )
        if self.num_negatives > self.num_candidates:
            raise InputError(
                f"--num_negatives {self.num_negatives}: more than --num_candidates {self.num_candidates}; raise that"
            )
        if not self.num_negatives and not self.cluster_size and self.margin is None:
            raise InputError("--num_negatives 0 and --cluster_size 0 without --margin: nothing to mine")
        if self.cluster_size and self.cluster_method == METIS and importlib.util.find_spec("pymetis") is None:
            raise InputError(
                "--cluster_method metis: the package pymetis is not installed; pip install "
                "'vlm2vec-deepspeed[mine]', or use --cluster_method greedy"
            )

    def of_subset(self, subset: str, num_targets: int) -> SubsetSettings:
        """The settings in force for one subset."""
        skipped = self.skip_ranks.of(subset, num_targets, self.num_candidates)
        size, method = self.cluster_size, self.cluster_method if self.cluster_size else None
        return SubsetSettings(skipped, self.margin, self.num_negatives, self.num_candidates, size, method)


@dataclass(frozen=True)
class SubsetSettings:
    """`MiningSettings` for one subset, as stored in its record in `mined.json`."""

    skip_ranks: int
    margin: float | None
    num_negatives: int
    num_candidates: int
    cluster_size: int
    cluster_method: str | None
