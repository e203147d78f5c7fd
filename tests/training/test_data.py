"""From the flags to the order of the data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.rig.made_up_sidecar import CLUSTER_SIZE, made_up, write_sidecar
from tests.rig.written import stored_image
from vlm2vec.backbones.phi3_v import Phi3VProcessor
from vlm2vec.batches import GlobalOrder, Mixture
from vlm2vec.errors import InputError
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.mined.format import Mined
from vlm2vec.shards import ShardSet
from vlm2vec.shards.manifest import Manifest, SubsetRecord
from vlm2vec.shards.schema import shard_name
from vlm2vec.shards.writer import ShardWriter, StoredItem
from vlm2vec.training.data import (
    RunData,
    global_order,
    largest_of_several,
    open_data,
    open_shards,
    open_sidecar,
    order_remarks,
)
from vlm2vec.training.flags.run import parse_arguments
from vlm2vec.training.settings import DataSettings, MinedSettings

UNITS = ("--homogeneous_batch_size", "4")
CLUSTERS = ("--mined", "m", "--mined_clusters", "True", *UNITS)


def settings(shards: str, *extra: str, batch: str = "16") -> DataSettings:
    needed = ["--model_name", "m", "--output_dir", "o", "--deepspeed", "d", "--max_steps", "1"]
    arguments = parse_arguments([*needed, "--dataset_name", shards, "--global_batch_size", batch, *extra])
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
    assert order_remarks(plain) == f" | each epoch leaves out {total % 16} pairs, which differ from epoch to epoch"
    distinct = global_order(settings(str(mini_shards_dir), "--no_duplicate_positives"), shards)
    left = distinct.duplicate_targets(0)
    assert f" | {left} pairs of epoch 0 share a target with a pair of their batch" in order_remarks(distinct)
    assert left < plain_duplicates(shards)


def test_batches_of_a_meta_task_are_named(mini_shards_dir: Path) -> None:
    shards = ShardSet.open(mini_shards_dir, ["Photos", "PairVQA", "ColorVQA"])
    grouped = global_order(
        settings(str(mini_shards_dir), "--homogeneous_batch_size", "8", "--homogeneous_groups", "meta_task"), shards
    )
    assert order_remarks(grouped).startswith(" | batches of meta-task classification, meta-task vqa | each epoch")
    sizes = {"PairVQA": 16, "ColorVQA": 16, "my-photos": 16}
    own = GlobalOrder(sizes, 16, 0, Mixture(unit=8, groups="meta_task"))
    assert order_remarks(own) == (
        " | batches of meta-task vqa | subsets without a meta-task, in separate batches: my-photos"
    )


def test_a_sidecar_gives_clusters_to_the_order_and_rows_to_the_planner(mini_shards_dir: Path, tmp_path: Path) -> None:
    shards = ShardSet.open(mini_shards_dir, ["Photos", "PairVQA"])
    mined, other = (str(write_sidecar(tmp_path / name, shards, seed)) for seed, name in enumerate("ab"))
    chosen = ["--subset_name", "Photos", "PairVQA", "--homogeneous_batch_size", "8"]

    def data(*flags: str) -> RunData:
        return open_data(settings(str(mini_shards_dir), *chosen, *flags), rank=0)

    plain, clusters = data(), data("--mined", mined, "--mined_clusters", "True")
    assert (plain.mined, plain.sidecar, set(plain.fingerprints)) == (None, None, {"shards", "order"})
    assert clusters.mined is None  # nothing of the rows takes part
    assert clusters.order.clusters is not None
    assert (clusters.order.clusters.size, clusters.order.sizes) == (CLUSTER_SIZE, plain.order.sizes)
    left_over = sum(int((made_up(size, 0).cluster < 0).sum()) for size in shards.num_samples.values())
    assert f" mined clusters of 4 pairs, {left_over} pairs outside clusters in separate units | " in order_remarks(
        clusters.order
    )
    rows = data("--mined", mined, "--mined_negatives", "3")
    assert rows.mined is not None
    assert (rows.mined.negatives, rows.mined.false_negatives, rows.mined.scores) == (3, False, False)
    assert len(rows.mined.subsets[1].positive_score) == shards.num_samples["PairVQA"]
    assert rows.order.digest == plain.order.digest
    another = data("--mined", other, "--mined_clusters", "True")
    assert len({each.order.digest for each in (plain, clusters, another)}) == 3
    assert another.fingerprints["mined"] != clusters.fingerprints["mined"] == rows.fingerprints["mined"]


def test_refuses_a_sidecar_that_lacks_what_the_flags_use(mini_shards_dir: Path, tmp_path: Path) -> None:
    shards = ShardSet.open(mini_shards_dir, ["Photos"])
    mined = write_sidecar(tmp_path / "mined", shards)
    flags = ["--mined", str(mined), "--mined_clusters", "True"]
    with pytest.raises(InputError, match="subset PairVQA was not mined, only Photos"):
        open_data(settings(str(mini_shards_dir), "--subset_name", "PairVQA", *UNITS, *flags), rank=0)
    only = ["--subset_name", "Photos"]
    with pytest.raises(InputError, match="a unit of 6 pairs is not a whole number of mined clusters of 4"):
        open_data(settings(str(mini_shards_dir), *only, "--homogeneous_batch_size", "6", *flags, batch="12"), rank=0)
    sidecar = Mined.read(mined)
    bare = dataclasses.replace(sidecar.subsets["Photos"], num_negatives=0, num_false_negatives=0)
    for settings_of, message in (
        (MinedSettings(mined, clusters=True), "no clusters were mined; mine them, or leave out --mined_clusters"),
        (MinedSettings(mined, negatives=2), "no hard negatives were mined"),
        (MinedSettings(mined, false_negatives=True), "the teacher found no false negatives"),
    ):
        dataclasses.replace(sidecar, cluster_size=0, subsets={"Photos": bare}).write()
        with pytest.raises(InputError, match=message):
            open_sidecar(settings_of, shards)


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
        (
            ["--homogeneous_groups", "meta_task", *UNITS, "--order", "block"],
            "a block holds neighbouring rows",
        ),
        (["--mined_negatives", "2"], "--mined_negatives: no effect without --mined"),
        (["--mined", "m"], "--mined: no effect without --mined_negatives, --mined_clusters or --false_negative_source"),
        (["--mined", "m", "--mined_negatives", "-1"], "at least 0"),
        ([*CLUSTERS[:4]], "give --homogeneous_batch_size"),
        ([*CLUSTERS, "--num_sample_per_subset", "9"], "convert fewer samples and mine those"),
        ([*CLUSTERS, "--no_duplicate_positives"], "use --mask_false_negatives instead"),
        ([*CLUSTERS, "--order", "block"], "the rows of a cluster are not neighbours"),
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
        (["Photos=1", "Pairs=2"], "Pairs: no such subset; the subsets are Photos, PairVQA"),
        (["Photos=1"], "no weight for PairVQA"),
    ],
)
def test_bad_weights_are_named(weights: list[str], message: str, mini_shards_dir: Path) -> None:
    shards = ShardSet.open(mini_shards_dir, ["Photos", "PairVQA"])
    with pytest.raises(InputError, match=message):
        global_order(settings(str(mini_shards_dir), "--mixture_weights", *weights), shards)


def test_the_largest_item_with_several_images_is_found(
    mini_shards_dir: Path, golden_model_dir: Path, tmp_path: Path
) -> None:
    inputs = ItemEncoderInputs(Phi3VProcessor.from_pretrained(golden_model_dir), max_len=64)
    assert largest_of_several(ShardSet.open(mini_shards_dir), inputs, True) == ()
    small, wide = (stored_image(size, 1) for size in ((40, 30), (900, 300)))
    records = []
    for number, queries in enumerate(([(small,), (small, wide)], [(wide, wide, small), (wide,)])):
        name = shard_name("A", number)
        with ShardWriter(tmp_path / "A", name, "A") as writer:
            for row, images in enumerate(queries):
                query, negative = StoredItem("a query", images), StoredItem("wrong", (wide,) * 4)
                writer.add(2 * number + row, query, StoredItem("answer"), [negative] * row)
            records.append(writer.commit((2 * number, 2 * number + 2), {}))
    Manifest({}, {"A": SubsetRecord((), tuple(records))}).write(tmp_path)
    shards = ShardSet.open(tmp_path)
    assert largest_of_several(shards, inputs, False) == ((900, 300), (900, 300), (40, 30))
    assert largest_of_several(shards, inputs, True) == ((900, 300),) * 4
