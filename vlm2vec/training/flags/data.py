"""Flags for the data: which samples, and in what order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlm2vec.batches.groups import GROUPINGS, SUBSET
from vlm2vec.batches.mixture import BLOCK, ORDERS
from vlm2vec.errors import InputError
from vlm2vec.shards import is_url
from vlm2vec.training.flags.option import REQUIRED, Refusal, given, no_effect, option

# Of `--subset_name`.
ALL = "all"


@dataclass
class DataArguments:
    """The shards."""

    dataset_name: str = option(
        REQUIRED, "Folder of shards, as data_prep.convert writes it, or its URL.", "place", per_node=True
    )
    subset_name: list[str] = option([ALL], f"Subsets to train on; '{ALL}' takes every subset of the shards.")
    num_sample_per_subset: int | None = option(
        None, "Use at most N samples of a subset, drawn with --seed (--first_n: the first ones)."
    )
    first_n: bool = option(
        False,
        "--num_sample_per_subset takes a subset's first samples, as the original does.",
        needs="num_sample_per_subset",
    )
    mixture_weights: list[str] = option(
        [], "Each subset's share of the batches, such as VisDial=2 NIGHTS=1; by size if not given."
    )
    mixture_temperature: float | None = option(
        None, "T: shares by (number of samples)^(1/T) instead; 1 = by size, larger = more even."
    )
    homogeneous_batch_size: int = option(1, "N consecutive rows of a batch come from one subset; 1 mixes freely.")
    homogeneous_groups: str = option(
        SUBSET,
        "What those rows come from: 'subset', or 'meta_task', all subsets of one meta-task of MMEB; a subset without "
        "one keeps to itself.",
        needs="homogeneous_batch_size",
    )
    mined: str | None = option(
        None,
        "Folder that data_prep.mine wrote for these shards: its hard negatives, clusters, scores.",
        "place",
        per_node=True,
    )
    mined_negatives: int = option(
        0, "At most N mined hard negatives join a row, hardest first, besides the data's own.", needs="mined"
    )
    mined_clusters: bool = option(
        False,
        "Rows of a mined cluster stay together; --homogeneous_batch_size is one cluster or several.",
        needs="mined",
    )
    no_duplicate_positives: bool = option(
        False, "Keep rows with the same target out of each other's batch as far as the data allows."
    )
    order: str = option(
        "random", "'random' over each subset, or 'block': in blocks read in one piece, for shards behind http or S3."
    )
    cache_dir: str | None = option(
        None,
        "Local folder for pieces of shards behind a URL, shared by a node's ranks; a temporary one if not given.",
        "place",
        per_node=True,
    )
    cache_gb: float = option(50.0, "Cache size limit in GB; the oldest pieces are evicted first.", "speed")
    max_bad_samples: int = option(
        10,
        "Samples found unreadable are replaced by others of their subset and reported; more than this end the run.",
        "speed",
    )
    image_dir: str | None = option(
        None, "Refused: shards carry their images. Give it to data_prep.convert.", "place", per_node=True
    )
    dataloader_num_workers: int = option(
        2,
        "Processes per rank that decode and process images ahead, and one more that plans; 0 = in the rank itself.",
        "speed",
    )


def data_refusals(data: DataArguments) -> list[Refusal]:
    """What cannot work or would be ignored."""
    most, temperature = data.num_sample_per_subset, data.mixture_temperature
    return [
        (most is not None and most < 1, f"--num_sample_per_subset {most}: must be at least 1"),
        (temperature is not None and temperature <= 0, f"--mixture_temperature {temperature}: must be positive"),
        (
            temperature is not None and bool(data.mixture_weights),
            "--mixture_weights and --mixture_temperature exclude each other: give one",
        ),
        (data.homogeneous_batch_size < 1, "--homogeneous_batch_size: must be at least 1"),
        *_group_refusals(data),
        *_mined_refusals(data),
        no_effect(
            given(data, ["cache_dir", "cache_gb"]),
            "on shards in a folder, only on those behind a URL",
            when=not is_url(data.dataset_name),
        ),
        (data.cache_gb <= 0, f"--cache_gb {data.cache_gb}: must be positive"),
        (data.max_bad_samples < 0, f"--max_bad_samples {data.max_bad_samples}: must be at least 0"),
        (data.order not in ORDERS, f"--order {data.order}: must be one of {', '.join(ORDERS)}"),
        (
            data.order == BLOCK and most is not None and not data.first_n,
            "--order block with --num_sample_per_subset: a drawn sample has no neighbours to read in one piece; add "
            "--first_n",
        ),
        (data.image_dir is not None, "--image_dir: shards carry their images; give it to data_prep.convert"),
    ]


def _group_refusals(data: DataArguments) -> list[Refusal]:
    """What batches of a meta-task exclude."""
    groups = data.homogeneous_groups
    flag = f"--homogeneous_groups {groups}"
    is_shared = groups != SUBSET
    return [
        (groups not in GROUPINGS, f"{flag}: must be one of {', '.join(GROUPINGS)}"),
        (
            is_shared and (bool(data.mixture_weights) or data.mixture_temperature is not None),
            f"{flag} with --mixture_weights or --mixture_temperature: these are shares of subsets, and its batches mix "
            "the subsets of a meta-task by size; leave one of them out",
        ),
        (
            is_shared and data.order == BLOCK,
            f"{flag} with --order {BLOCK}: blocks are neighbours in one subset; leave one of them out",
        ),
    ]


def _mined_refusals(data: DataArguments) -> list[Refusal]:
    """What mined negatives and clusters exclude."""
    clusters, most = data.mined_clusters, data.num_sample_per_subset
    return [
        (data.mined_negatives < 0, f"--mined_negatives {data.mined_negatives}: must be at least 0"),
        (
            clusters and data.homogeneous_batch_size == 1,
            "--mined_clusters: rows stay together only in a homogeneous batch; give --homogeneous_batch_size, the size "
            "of the mined clusters or a multiple of it",
        ),
        (
            clusters and most is not None,
            f"--mined_clusters with --num_sample_per_subset {most}: clusters are made of all samples; leave "
            "one of them out, or convert fewer samples and mine them",
        ),
        (
            clusters and data.no_duplicate_positives,
            "--mined_clusters with --no_duplicate_positives, which would swap rows out of their clusters: use "
            "--mask_false_negatives instead",
        ),
        (
            clusters and data.order == BLOCK,
            f"--mined_clusters with --order {BLOCK}: the rows of a cluster are no neighbours; leave one of them out",
        ),
    ]


def mixture_weights(words: Sequence[str]) -> dict[str, float] | None:
    """The shares that `--mixture_weights` gives to subsets; None if it is not given.

    Raises:
        InputError: A word that is no share, or a subset twice.
    """
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
    return weights or None
