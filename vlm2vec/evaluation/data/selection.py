"""Selects the datasets that a run scores: by benchmark, group (meta-task, IND, OOD) or name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from vlm2vec.evaluation.naming import Thing, ThingError
from vlm2vec.mmeb import META_TASKS, MINI_MMEB, MMEB, SELECT_ALL, SELECT_IND, SELECT_OOD, Benchmark

BENCHMARKS = {benchmark.name: benchmark for benchmark in (MMEB, MINI_MMEB)}
# Meta-task of a dataset that no benchmark lists, such as a user's.
OTHER = "other"
TASKS = (*META_TASKS, OTHER)
DISTRIBUTIONS = (SELECT_IND, SELECT_OOD)
# AUTO recognises the benchmark by the datasets' names; FOLDER means none.
AUTO, FOLDER = "auto", "folder"
BENCHMARK_NAMES = (AUTO, FOLDER, *BENCHMARKS)


def benchmark_of(name: str, found: Collection[str]) -> Benchmark | None:
    """Benchmark of a folder's datasets.

    Args:
        name: "auto" recognises it by the datasets' names, "folder" means none (all meta-tasks are then "other");
            otherwise the benchmark's name (one of `BENCHMARK_NAMES`).
        found: Names of the datasets in the folder.

    Raises:
        InputError: The benchmark lists none of the folder's datasets.
    """
    if name == AUTO:
        return recognise(found)
    if name == FOLDER:
        return None
    if not set(found) & listed(BENCHMARKS[name]):
        some = ", ".join(sorted(found)[:3])
        raise ThingError(Thing.BENCHMARK, f"{name}: lists none of the folder's datasets ({some})")
    return BENCHMARKS[name]


def recognise(names: Collection[str]) -> Benchmark | None:
    """The benchmark that lists the most of a folder's datasets; None if no benchmark lists any."""
    shared = {name: len(set(names) & listed(benchmark)) for name, benchmark in BENCHMARKS.items()}
    best = max(shared, key=lambda name: shared[name])
    return BENCHMARKS[best] if shared[best] else None


def groups_of(name: str, benchmark: Benchmark | None) -> tuple[str, str | None]:
    """A dataset's meta-task, and "IND" or "OOD" (None if the benchmark does not list it)."""
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
        found: Names of the datasets in the folder.
        benchmark: The folder's benchmark, None if unknown.

    Returns:
        The chosen datasets, the benchmark's first and in its order; and the datasets that the benchmark lists for a
        chosen group but the folder lacks.

    Raises:
        InputError: A selection matches no dataset in the folder.
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
    """Sorts datasets in the benchmark's order; unlisted ones follow, by name."""
    listed = [dataset.name for dataset in benchmark.eval_datasets] if benchmark else []
    return sorted(names, key=lambda name: (listed.index(name) if name in listed else len(listed), name))


def listed(benchmark: Benchmark) -> set[str]:
    """Names of a benchmark's evaluation datasets."""
    return {dataset.name for dataset in benchmark.eval_datasets}
