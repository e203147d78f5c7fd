"""The encoding plan: images on disk, distinct items, batches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trials.rig.hand_made_eval import read, row, write_dataset, write_image
from vlm2vec.backbones.phi3_v import Phi3VProcessor
from vlm2vec.errors import InputError
from vlm2vec.evaluation.data.images import scan_images
from vlm2vec.evaluation.data.items import ItemTable
from vlm2vec.evaluation.data.warnings import dataset_warnings
from vlm2vec.evaluation.encoding_plan import EncodingPlan, plan_encoding
from vlm2vec.images.folder import ImageFolder
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.item_rules import IMAGE_ONLY_TEXT
from vlm2vec.mmeb import MMEB, Benchmark

TAG = "<|image_1|> what?"


@pytest.fixture(scope="module")
def inputs(mini_model_dir: Path) -> ItemEncoderInputs:
    return ItemEncoderInputs(Phi3VProcessor.from_pretrained(mini_model_dir), 256)


def plan_of(
    folder: Path, items: ItemTable, inputs: ItemEncoderInputs, batch_tokens: int = 64, max_items: int | None = None
) -> EncodingPlan:
    return plan_encoding(items, scan_images(items, ImageFolder(folder)), inputs, batch_tokens, max_items)


def test_items_with_the_same_text_and_image_bytes_are_one(tmp_path: Path, inputs: ItemEncoderInputs) -> None:
    write_image(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "copy.png")
    write_image(tmp_path / "b.png", (0, 0, 255))
    images = ["a.png", "copy.png", "b.png", "a.png"]
    path = write_dataset(tmp_path, "A", [row("q", [TAG, TAG, TAG, ""], images=images)])
    (rows,), items = read(path)
    plan = plan_of(tmp_path, items, inputs)
    place = plan.position[rows.of_row(0)]
    assert place[0] == place[1]
    assert len(set(place.tolist())) == 3
    assert len(plan.order) == 4
    assert sorted(plan.position[plan.order].tolist()) == [0, 1, 2, 3]


def test_a_lone_image_is_the_image_under_the_benchmarks_prompt(tmp_path: Path, inputs: ItemEncoderInputs) -> None:
    write_image(tmp_path / "a.png")
    path = write_dataset(tmp_path, "A", [row("q", ["", IMAGE_ONLY_TEXT], images=["a.png", "a.png"])])
    (rows,), items = read(path)
    place = plan_of(tmp_path, items, inputs).position[rows.of_row(0)]
    assert place[0] == place[1]


def test_batches_hold_like_items_within_the_budget(tmp_path: Path, inputs: ItemEncoderInputs) -> None:
    for number in range(5):
        write_image(tmp_path / f"{number}.png", (number, 0, 0), size=(40 + 30 * number, 40))
    texts = [f"word {'of many ' * (number % 7)}{number}" for number in range(60)]
    images = [f"{number}.png" for number in range(5)]
    path = write_dataset(tmp_path, "A", [row("q", texts), row("q", [TAG] * 5, images=images)])
    _, items = read(path)
    plan = plan_of(tmp_path, items, inputs, batch_tokens=64)
    lengths = []
    for batch in range(plan.num_batches):
        own = [int(plan.order[each]) for each in plan.rows(batch)]
        has_image = {bool(items.image(index)) for index in own}
        assert has_image == {batch < plan.num_image_batches}
        assert len(own) == 1 or plan.costs[batch] <= 64
        lengths.append(plan.costs[batch] / len(own))
    images_first = lengths[: plan.num_image_batches]
    assert images_first == sorted(images_first, reverse=True)
    assert lengths[plan.num_image_batches :] == sorted(lengths[plan.num_image_batches :], reverse=True)
    most = plan_of(tmp_path, items, inputs, batch_tokens=10_000, max_items=4)
    assert max(len(most.rows(batch)) for batch in range(most.num_batches)) == 4


def test_ranks_share_all_blocks_whatever_is_left_of_them(tmp_path: Path, inputs: ItemEncoderInputs) -> None:
    path = write_dataset(tmp_path, "A", [row("q", [f"text {number}" for number in range(40)])])
    _, items = read(path)
    plan = plan_of(tmp_path, items, inputs, max_items=2)
    left = list(range(3, len(plan.blocks())))
    ranks = plan.distribute_blocks(left, 3)
    assert sorted(number for rank in ranks for number in rank) == left
    loads = [sum(plan.costs[number] for number in rank) for rank in ranks]
    assert max(loads) - min(loads) <= plan.costs.max()


def test_the_digest_sees_texts_images_and_batches(tmp_path: Path, inputs: ItemEncoderInputs) -> None:
    write_image(tmp_path / "a.png")
    path = write_dataset(tmp_path, "A", [row("q", ["x", TAG], images=["", "a.png"])])
    _, items = read(path)
    digests = [plan_of(tmp_path, items, inputs).digest, plan_of(tmp_path, items, inputs).digest]
    assert digests[0] == digests[1]
    digests.append(plan_of(tmp_path, items, inputs, max_items=1).digest)
    write_image(tmp_path / "a.png", (1, 2, 3))
    digests.append(plan_of(tmp_path, items, inputs).digest)
    write_dataset(tmp_path, "A", [row("q", ["y", TAG], images=["", "a.png"])])
    digests.append(plan_of(tmp_path, read(path)[1], inputs).digest)
    assert len(set(digests)) == 4


@pytest.mark.parametrize("text", ["", " \n", "<|image_1|>"])
def test_an_item_without_information_is_named(tmp_path: Path, inputs: ItemEncoderInputs, text: str) -> None:
    path = write_dataset(tmp_path, "A", [row("q", ["x"]), row("q", ["x", text])])
    with pytest.raises(InputError, match=r"row 1: .*neither text nor image|row 1: .*has no content and there is no im"):
        plan_of(tmp_path, read(path)[1], inputs)


def test_a_text_without_the_images_tag_is_named(tmp_path: Path, inputs: ItemEncoderInputs) -> None:
    write_image(tmp_path / "a.png")
    path = write_dataset(tmp_path, "A", [row("q", ["x"]), row("what?", ["x"], "a.png")])
    with pytest.raises(InputError, match=r"row 1: an item with 1 image has no image tag"):
        plan_of(tmp_path, read(path)[1], inputs)


def test_missing_images_are_counted_before_anything_is_loaded(tmp_path: Path) -> None:
    write_image(tmp_path / "here.png")
    path = write_dataset(tmp_path, "A", [row("q", ["", "", ""], images=["here.png", "gone.png", "lost.png"])])
    message = r"row 0: .*gone\.png: no such image .* \(and 1 more of 3 images\)"
    with pytest.raises(InputError, match=message):
        scan_images(read(path)[1], ImageFolder(tmp_path))


@pytest.mark.parametrize("image", ["/etc/hostname", "../secret.png", "a/../../secret.png", "nul\0.png", "link.png"])
def test_images_outside_the_folder_are_refused(tmp_path: Path, image: str) -> None:
    write_image(tmp_path / "secret.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    path = write_dataset(tmp_path, "A", [row("q", ["x"], query_image=image)])
    with pytest.raises(InputError, match=r"row 0: .*(relative and without|leads out of|NUL)"):
        scan_images(read(path)[1], ImageFolder(tmp_path / "images"))


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    path = write_dataset(tmp_path, "A", [row(TAG, ["x"], query_image="a.png")])
    with pytest.raises(InputError, match=r"row 0: .*a\.png: not a JPEG"):
        scan_images(read(path)[1], ImageFolder(tmp_path))


def warnings_of(tmp_path: Path, name: str, rows: list[dict[str, Any]], benchmark: Benchmark | None = None) -> list[str]:
    (read_rows,), items = read(write_dataset(tmp_path, name, rows))
    return dataset_warnings(read_rows, np.arange(len(items), dtype=np.int32), benchmark)


def test_what_distorts_a_datasets_scores_is_reported(tmp_path: Path) -> None:
    fine = [row("q", ["x", "y"]), row("r", ["y", "x"])]
    assert warnings_of(tmp_path, "mine", fine) == []
    assert warnings_of(tmp_path, "GQA", fine, MMEB) == [
        "GQA: 2 rows, but MMEB has 1,000",
        "GQA: 2 of 2 rows do not have 1,000 candidates, as MMEB has",
    ]
    same = [row("q", ["x", "y"]), row("r", ["x", "y"])]
    assert "all rows have the same first candidate" in warnings_of(tmp_path, "mine", same)[0]
    single = [row("q", ["x"]), row("r", ["y", "x"])]
    assert (
        "1 of 2 rows have the target as only candidate, so that they always count as correct"
        in warnings_of(tmp_path, "mine", single)[0]
    )
    twice = [row("q", ["x", "y", "x"]), row("r", ["y", "x"])]
    assert (
        "1 of 2 rows have their target several times among the candidates; any of them counts"
        in warnings_of(tmp_path, "mine", twice)[0]
    )
