"""Which datasets a run scores: benchmarks, their groups (meta-task, IND, OOD), and selections by either or by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from vlm2vec.evaluation.naming import Thing, ThingError
from vlm2vec.mmeb import META_TASKS, MINI_MMEB, MMEB, SELECT_ALL, SELECT_IND, SELECT_OOD, Benchmark

BENCHMARKS = {benchmark.name: benchmark for benchmark in (MMEB, MINI_MMEB)}
# Meta-task of a dataset that no benchmark lists, such as a user's own.
OTHER = "other"
TASKS = (*META_TASKS, OTHER)
DISTRIBUTIONS = (SELECT_IND, SELECT_OOD)
# A benchmark: by the folder's names, or none: all datasets are one's own.
AUTO, FOLDER = "auto", "folder"
BENCHMARK_NAMES = (AUTO, FOLDER, *BENCHMARKS)


def benchmark_of(name: str, found: Collection[str]) -> Benchmark | None:
    """The benchmark that a folder's datasets belong to.

    Args:
        name: "auto" recognises it by the datasets' names, "folder" knows none (meta-tasks are then "other"), or the
            benchmark's own name (one of `BENCHMARK_NAMES`).
        found: the datasets in the folder.

    Raises:
        InputError: a benchmark that lists none of the folder's datasets.
    """
    if name == AUTO:
        return recognise(found)
    if name == FOLDER:
        return None
    if not set(found) & listed(BENCHMARKS[name]):
        some = ", ".join(sorted(found)[:3])
        raise ThingError(Thing.BENCHMARK, f"{name}: it lists none of the folder's datasets ({some})")
    return BENCHMARKS[name]


def recognise(names: Collection[str]) -> Benchmark | None:
    """The benchmark that lists most of a folder's datasets; None if none of them lists any."""
    shared = {name: len(set(names) & listed(benchmark)) for name, benchmark in BENCHMARKS.items()}
    best = max(shared, key=lambda name: shared[name])
    return BENCHMARKS[best] if shared[best] else None


def groups_of(name: str, benchmark: Benchmark | None) -> tuple[str, str | None]:
    """A dataset's meta-task, and "IND" or "OOD" (None for one that the benchmark does not list)."""
    if benchmark is None or name not in listed(benchmark):
        return OTHER, None
    dataset = benchmark.dataset(name)
    return dataset.meta_task, SELECT_IND if dataset.in_distribution else SELECT_OOD


def select(
    selections: Sequence[str], found: Collection[str], benchmark: Benchmark | None
) -> tuple[list[str], list[str]]:
    """Expands a selection over the datasets in a folder.

    Args:
        selections: "all", "IND", "OOD", meta-tasks, "other", or names of datasets.
        found: the datasets in the folder.

    Returns:
        The chosen datasets, the benchmark's first and in its order; and those that the benchmark lists for a chosen
        group but the folder lacks.

    Raises:
        InputError: a selection without any dataset in the folder.
    """
    chosen: set[str] = set()
    absent: set[str] = set()
    for selection in selections:
        wanted = {name for name in found if selection in (name, SELECT_ALL, *groups_of(name, benchmark))}
        if not wanted:
            have = ", ".join(in_order(found, benchmark))
            raise ThingError(Thing.SUBSET, f"{selection}: the folder has no such dataset or group; it has {have}")
        chosen |= wanted
        if benchmark and selection not in (*found, OTHER):
            absent |= set(benchmark.select([selection])) - set(found)
    return in_order(chosen, benchmark), in_order(absent, benchmark)


def in_order(names: Iterable[str], benchmark: Benchmark | None) -> list[str]:
    """Sorts datasets by the benchmark's order; those that it does not list follow, by name."""
    listed = [dataset.name for dataset in benchmark.eval_datasets] if benchmark else []
    return sorted(names, key=lambda name: (listed.index(name) if name in listed else len(listed), name))


def listed(benchmark: Benchmark) -> set[str]:
    """Names of a benchmark's evaluation datasets."""
    return {dataset.name for dataset in benchmark.eval_datasets}
