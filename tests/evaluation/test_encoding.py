from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.rig.comparing import assert_close_relative
from trials.rig.hand_made_eval import read, row, write_dataset, write_image
from vlm2vec import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.evaluation.data.images import scan_images
from vlm2vec.evaluation.encoding import BatchSource, check_finite, collapse, encode_blocks
from vlm2vec.evaluation.encoding_plan import plan_encoding
from vlm2vec.evaluation.store import EvalStore
from vlm2vec.images.folder import ImageFolder
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs

pytestmark = pytest.mark.numeric

TAG = "<|image_1|> what?"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(mini_model_dir: Path) -> VLM2Vec:
    return VLM2Vec.from_pretrained(mini_model_dir)


def source_of(folder: Path, encoder: VLM2Vec, batch_tokens: int) -> BatchSource:
    """Five images with text, one alone, twelve texts."""
    images = [f"{number}.png" for number in range(6)]
    for number, image in enumerate(images):
        write_image(folder / image, (40 * number, 90, 10), size=(30 + 20 * number, 40))
    texts = [f"a text {'of words ' * (number % 4)}{number}" for number in range(12)]
    first = row("q", texts, images=[""] * 12)
    path = write_dataset(folder, "A", [first, row("q", [TAG] * 5 + [""], images=images)])
    _, items = read(path)
    images_of = ImageFolder(folder)
    inputs = ItemEncoderInputs(encoder.processor, 256)
    plan = plan_encoding(items, scan_images(items, images_of), inputs, batch_tokens)
    return BatchSource(items, plan, images_of, inputs)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_vectors_are_those_of_the_encoder_in_the_plans_order(
    tmp_path: Path, encoder: VLM2Vec, num_workers: int
) -> None:
    source = source_of(tmp_path, encoder, batch_tokens=64)
    plan, items = source.plan, source.items
    assert plan.num_batches > 4
    (tmp_path / "store").mkdir()
    store = EvalStore(tmp_path / "store")
    (tmp_path / "store" / "blocks").mkdir()
    encode_blocks(encoder, source, store, range(len(plan.blocks())), CPU, num_workers)
    assert store.missing_blocks(plan) == []
    store.assemble(plan)
    assert not (tmp_path / "store" / "blocks").exists()
    texts = [items.text(index) for index in range(len(items))]
    images = [str(tmp_path / items.image(index)) if items.image(index) else None for index in range(len(items))]
    expected = np.asarray(encoder.encode(texts=texts, images=images))
    assert_close_relative(store.vectors()[plan.position], expected, 5e-6)


def test_drawing_batches_leaves_the_random_state_alone(tmp_path: Path, encoder: VLM2Vec) -> None:
    source = source_of(tmp_path, encoder, batch_tokens=64)
    before = torch.get_rng_state()
    list(source.chunks([0, 1], num_workers=0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_named_with_its_row(
    tmp_path: Path, encoder: VLM2Vec, num_workers: int
) -> None:
    source = source_of(tmp_path, encoder, batch_tokens=64)
    broken = tmp_path / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(InputError, match=r"test-00000-of-00001\.parquet row 1: .*2\.png: damaged"):
        list(source.chunks(range(source.plan.num_batches), num_workers))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_refused(broken: float) -> None:
    vectors = np.asarray([[1.0, 0.0], [1.0, broken]], dtype=np.float32)
    with pytest.raises(InputError, match=r"NaN or infinity for 1 of 2 items of a batch, first for row 7"):
        check_finite(vectors, ["row 6", "row 7"])


def test_a_collapsed_model_is_distinguished_from_a_narrow_one() -> None:
    generator = np.random.default_rng(0)
    narrow = (generator.normal(scale=0.3, size=(5000, 8)) + 1).astype(np.float32)
    assert collapse(narrow) is None
    nearly = (generator.normal(scale=1e-3, size=(5000, 8)) + 1).astype(np.float32)
    assert "nearly the same vector" in str(collapse(nearly))
    same = (generator.normal(scale=1e-8, size=(5000, 8)) + 1).astype(np.float32)
    assert "it has collapsed" in str(collapse(same))


def test_a_disk_error_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone: cannot write there \(No such file or directory\)"):
        EvalStore(tmp_path / "gone").write_block(0, np.zeros((1, 2), dtype=np.float32))
