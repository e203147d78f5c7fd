"""From flags to the order of the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm2vec.batches import GlobalOrder, Mixture
from vlm2vec.errors import InputError
from vlm2vec.shards import ShardSet
from vlm2vec.training.data import global_order, open_shards, order_remarks
from vlm2vec.training.flags.run import parse_arguments
from vlm2vec.training.settings import DataSettings

UNITS = ("--homogeneous_batch_size", "4")


def settings(shards: str, *extra: str) -> DataSettings:
    needed = ["--model_name", "m", "--output_dir", "o", "--deepspeed", "d", "--max_steps", "1"]
    arguments = parse_arguments([*needed, "--dataset_name", shards, "--global_batch_size", "16", *extra])
    return arguments.resolve(2, {"zero_optimization": {"stage": 2}}).data


def test_flags_become_the_order(mini_shards_dir: Path) -> None:
    shards = ShardSet.open(mini_shards_dir, ["Photos", "PairVQA"])
    plain = global_order(settings(str(mini_shards_dir)), shards)
    assert plain.global_batch_size == 16
    assert plain.covers_each_sample_once
    flags = [
        *("--num_sample_per_subset", "20", "--first_n", "--mixture_weights", "PairVQA=3", "Photos=1"),
        *("--homogeneous_batch_size", "4", "--no_duplicate_positives", "--order", "block", "--seed", "5"),
    ]
    order = global_order(settings(str(mini_shards_dir), *flags), shards)
    mixture = order.mixture
    assert (mixture.max_samples, mixture.first_samples, mixture.unit, mixture.order) == (20, True, 4, "block")
    assert mixture.weights == {"PairVQA": 3, "Photos": 1}
    assert mixture.distinct_positives
    assert order.seed == 5
    warm = global_order(settings(str(mini_shards_dir), "--mixture_temperature", "2"), shards)
    assert warm.mixture.temperature == 2
    assert len({plain.digest, order.digest, warm.digest}) == 3


def test_what_an_epoch_does_not_deliver_is_said(mini_shards_dir: Path) -> None:
    shards = ShardSet.open(mini_shards_dir, ["Photos", "PairVQA"])
    total = sum(shards.num_samples.values())
    plain = global_order(settings(str(mini_shards_dir)), shards)
    assert order_remarks(plain) == f" | an epoch leaves out {total % 16} pairs, different ones each time"
    distinct = global_order(settings(str(mini_shards_dir), "--no_duplicate_positives"), shards)
    left = distinct.duplicate_targets(0)
    assert f" | {left} pairs of epoch 0 share a target with one of their batch" in order_remarks(distinct)
    assert left < plain_duplicates(shards)


def test_batches_of_a_meta_task_are_named(mini_shards_dir: Path) -> None:
    shards = ShardSet.open(mini_shards_dir, ["Photos", "PairVQA", "ColorVQA"])
    grouped = global_order(
        settings(str(mini_shards_dir), "--homogeneous_batch_size", "8", "--homogeneous_groups", "meta_task"), shards
    )
    assert order_remarks(grouped).startswith(" | batches of meta-task classification, meta-task vqa | an epoch")
    sizes = {"PairVQA": 16, "ColorVQA": 16, "my-photos": 16}
    own = GlobalOrder(sizes, 16, 0, Mixture(unit=8, groups="meta_task"))
    assert order_remarks(own) == (
        " | batches of meta-task vqa | subsets without meta-task, in batches of their own: my-photos"
    )


def plain_duplicates(shards: ShardSet) -> int:
    """Rows of an epoch whose target stands in their batch before them, without the flag."""
    order = global_order(settings("d"), shards)
    count = 0
    for step in range(order.steps_per_epoch):
        batch = order.batch(step)
        hashes = [
            shards.columns(shards.subsets[subset])["positive_hash"][position]
            for subset, position in zip(batch.subsets, batch.positions, strict=True)
        ]
        count += len(hashes) - len(set(hashes))
    return count


def test_subsets_are_opened_as_asked(mini_shards_dir: Path) -> None:
    assert open_shards(settings(str(mini_shards_dir), "--subset_name", "Photos")).subsets == ("Photos",)
    assert len(open_shards(settings(str(mini_shards_dir))).subsets) == 10


@pytest.mark.parametrize(
    ("extra", "remedy"),
    [
        (["--num_sample_per_subset", "0"], "at least 1"),
        (["--homogeneous_groups", "meta_task"], "no effect without --homogeneous_batch_size"),
        (["--homogeneous_groups", "task", *UNITS], "task: must be one of subset, meta_task"),
        (["--homogeneous_groups", "meta_task", *UNITS, "--mixture_temperature", "2"], "leave one of them out"),
        (["--homogeneous_groups", "meta_task", *UNITS, "--order", "block"], "blocks are neighbours in one subset"),
        (["--first_n"], "no effect without --num_sample_per_subset"),
        (["--mixture_temperature", "0"], "must be positive"),
        (["--mixture_temperature", "2", "--mixture_weights", "Photos=1"], "give one"),
        (["--homogeneous_batch_size", "0"], "at least 1"),
        (["--order", "sorted"], "must be one of random, block"),
        (["--order", "block", "--num_sample_per_subset", "9"], "add --first_n"),
        (["--max_bad_samples", "-1"], "at least 0"),
        (["--cache_dir", "x"], "no effect on shards in a folder"),
        (["--cache_gb", "1"], "no effect on shards in a folder"),
    ],
)
def test_refusals_name_the_remedy(extra: list[str], remedy: str) -> None:
    with pytest.raises(InputError, match=remedy) as refused:
        settings("shards", *extra)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (["Photos"], "expected SUBSET=WEIGHT"),
        (["Photos=many"], "expected SUBSET=WEIGHT"),
        (["Photos=1", "Photos=2"], "given twice"),
        (["Photos=1", "Pairs=2"], "Pairs: no such subset here"),
        (["Photos=1"], "no weight for PairVQA"),
    ],
)
def test_bad_weights_are_named(weights: list[str], message: str, mini_shards_dir: Path) -> None:
    shards = ShardSet.open(mini_shards_dir, ["Photos", "PairVQA"])
    with pytest.raises(InputError, match=message):
        global_order(settings(str(mini_shards_dir), "--mixture_weights", *weights), shards)
