"""Flags for the data: which samples, and in which order."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from vlm2vec.choices import BLOCK, GROUPINGS, ORDERS, RANDOM, SUBSET
from vlm2vec.errors import InputError
from vlm2vec.shards import is_url
from vlm2vec.training.flags.option import REQUIRED, Refusal, given, no_effect, option

# The value of `--subset_name` for every subset.
ALL = "all"


@dataclass
class _SampleFlags:
    """Data: the shards, and which of their rows share a batch."""

    dataset_name: str = option(
        REQUIRED,
        "Folder of shards that data_prep.convert wrote, or its URL.",
        "place",
        metavar="DIR|URL",
        per_node=True,
    )
    subset_name: list[str] = option(
        [ALL], f"Subsets to train on; '{ALL}' takes every subset of the shards.", metavar="NAME"
    )
    num_sample_per_subset: int | None = option(
        None,
        "Use at most N samples per subset, drawn with --seed (with --first_n: the first ones). If not given: all.",
    )
    first_n: bool = option(
        False,
        "Let --num_sample_per_subset take the first samples of a subset, as the original code does.",
        needs="num_sample_per_subset",
    )
    mixture_weights: list[str] = option(
        [],
        "Share of each subset in the batches, such as VisDial=2 NIGHTS=1. If not given: proportional to its size.",
        metavar="SUBSET=WEIGHT",
    )
    mixture_temperature: float | None = option(
        None,
        "T: shares are proportional to (number of samples)^(1/T). 1 is by size; larger values even the shares out. If "
        "not given: by size, or by --mixture_weights.",
    )
    homogeneous_batch_size: int = option(
        1, "N consecutive rows of a batch come from the same subset; 1 mixes subsets freely."
    )
    homogeneous_groups: str = option(
        SUBSET,
        "What those rows have in common: the subset, or the meta-task of MMEB (a subset without one stays separate).",
        metavar="|".join(GROUPINGS),
        needs="homogeneous_batch_size",
    )


@dataclass(kw_only=True)
class MinedArguments:
    """Mined negatives: hard negatives, clusters and teacher scores that data_prep.mine wrote."""

    mined: str | None = option(
        None,
        "Folder that data_prep.mine wrote for these shards: hard negatives, clusters, scores. If not given: none.",
        "place",
        metavar="DIR",
        per_node=True,
    )
    mined_negatives: int = option(
        0,
        "Add at most N mined hard negatives to each row, hardest first, in addition to the data's own.",
        needs="mined",
    )
    mined_clusters: bool = option(
        False,
        "Keep the rows of a mined cluster in one homogeneous batch; --homogeneous_batch_size must be the size of the "
        "clusters or a multiple of it.",
        needs="mined",
    )


@dataclass
class DataArguments(MinedArguments, _SampleFlags):
    """Order and loading: in which order rows are read, and what reads them."""

    no_duplicate_positives: bool = option(
        False, "Keep rows with the same target out of the same batch, as far as the data allows."
    )
    order: str = option(
        RANDOM,
        "'random': each subset is shuffled as a whole. 'block': neighbouring rows are read in one piece, for shards "
        "behind http or S3.",
        metavar="|".join(ORDERS),
    )
    cache_dir: str | None = option(
        None,
        "Local folder for pieces of shards behind a URL, shared by the ranks of a node. If not given: a temporary "
        "folder.",
        "place",
        metavar="DIR",
        per_node=True,
    )
    cache_gb: float = option(50.0, "Cache size limit in GB; the oldest pieces are evicted first.", "speed")
    max_bad_samples: int = option(
        10,
        "Samples that cannot be read are reported and replaced by others of their subset; abort after more than N.",
        "speed",
    )
    # Refused, for people who know it from the original's programs; not in the help.
    image_dir: str | None = option(None, argparse.SUPPRESS, "place", per_node=True)
    dataloader_num_workers: int = option(
        2,
        "Processes per rank that decode and prepare images ahead of the step; one more process plans the batches. 0 "
        "does both in the rank itself.",
        "speed",
    )


def data_refusals(data: DataArguments) -> list[Refusal]:
    """Values that cannot work or would be ignored."""
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
            "--order block with --num_sample_per_subset: drawn samples are not neighbours and cannot be read in one "
            "piece; add --first_n",
        ),
        (data.image_dir is not None, "--image_dir: shards carry their images; give it to data_prep.convert"),
    ]


def _group_refusals(data: DataArguments) -> list[Refusal]:
    """What homogeneous batches of a meta-task exclude."""
    groups = data.homogeneous_groups
    flag = f"--homogeneous_groups {groups}"
    is_shared = groups != SUBSET
    return [
        (groups not in GROUPINGS, f"{flag}: must be one of {', '.join(GROUPINGS)}"),
        (
            is_shared and (bool(data.mixture_weights) or data.mixture_temperature is not None),
            f"{flag} with --mixture_weights or --mixture_temperature: these give shares to subsets, but batches of a "
            "meta-task mix its subsets by size; leave one of them out",
        ),
        (
            is_shared and data.order == BLOCK,
            f"{flag} with --order {BLOCK}: a block holds neighbouring rows of one subset; leave one of them out",
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
            "one of them out, or convert fewer samples and mine those",
        ),
        (
            clusters and data.no_duplicate_positives,
            "--mined_clusters with --no_duplicate_positives, which would move rows out of their clusters: use "
            "--mask_false_negatives instead",
        ),
        (
            clusters and data.order == BLOCK,
            f"--mined_clusters with --order {BLOCK}: the rows of a cluster are not neighbours; leave one of them out",
        ),
    ]


def mixture_weights(words: Sequence[str]) -> dict[str, float] | None:
    """The share of each subset from `--mixture_weights`; None if it is not given.

    Raises:
        InputError: A word that is not SUBSET=WEIGHT, or a subset that is given twice.
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
