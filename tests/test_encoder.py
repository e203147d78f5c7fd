"""`VLM2Vec.encode`: every form of item, the same vector in any company, streaming."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import golden
from vlm2vec import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.items import IMAGE_ONLY_TEXT, EncodeItem, plan_batches
from vlm2vec.phi3_v import collate_items

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "while", "seven", "wizards", "vex", "queen"]
TAGGED = "<|image_1|> Represent the given image."


@pytest.fixture(scope="module")
def encoder(golden_model_dir: Path) -> VLM2Vec:
    return VLM2Vec.from_pretrained(golden_model_dir, num_crops=1, dtype=torch.float32)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_texts_pictures_and_both(encoder: VLM2Vec) -> None:
    picture = golden.PHI3V / "images/square.png"
    vectors = encoder.encode(
        [TAGGED, TAGGED, TAGGED, None, "", "A cat and a dog", None],
        [picture, str(picture), picture.read_bytes(), Image.open(picture), picture, None, None],
    )
    assert (vectors.shape, vectors.dtype) == ((7, 64), torch.float32)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(7))
    for row in (1, 2, 3, 4):  # a picture alone gets the benchmark's prompt
        torch.testing.assert_close(vectors[row], vectors[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.encode(images=[picture])[0], vectors[0], rtol=0, atol=1e-6)
    expected = golden.tensors("model_cases/text_batch.safetensors")["embedding"][0]
    assert (vectors[5] - expected).abs().max() < golden.EMBEDDING_LIMIT
    torch.testing.assert_close(encoder.encode([""])[0], vectors[6], rtol=0, atol=1e-6)
    assert IMAGE_ONLY_TEXT == TAGGED


def test_an_empty_list(encoder: VLM2Vec) -> None:
    assert encoder.encode([]).shape == (0, 64)


def test_several_pictures_enter_in_list_order(encoder: VLM2Vec) -> None:
    pair = [golden.image("images/square.png"), golden.image("images/noise.png")]
    ordered, swapped_tags = encoder.encode(["<|image_1|> a <|image_2|>", "<|image_2|> a <|image_1|>"], [pair, pair])
    torch.testing.assert_close(ordered, swapped_tags, rtol=0, atol=1e-6)
    swapped_pictures = encoder.encode(["<|image_1|> a <|image_2|>"], [pair[::-1]])[0]
    assert (ordered - swapped_pictures).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("texts", "images", "message"),
    [
        (["a", "no tag"], [None, Image.new("RGB", (9, 9))], "item 1: an item with 1 picture"),
        (["", ""], [None, [Image.new("RGB", (9, 9))] * 2], "item 1: an item with 2 picture"),
        (["a"], [None, None], "1 texts but 2 images"),
        ("a", None, "must be a list"),
        (None, None, "give texts, images or both"),
        ([3], None, "must be a string"),
        ([TAGGED], [np.zeros((9, 9, 3))], "item 0: an image must be a PIL image, a path or bytes"),
        ([TAGGED], ["/nowhere/x.png"], "cannot read the picture"),
        ([TAGGED], [b"text"], "not a JPEG"),
        ([TAGGED], [png(Image.new("RGB", (90, 90), "red"))[:-40]], "damaged or truncated"),
        ([TAGGED], [png(Image.new("I;16", (9, 9), 30000))], "more than 8 bits"),
        ([TAGGED], [png(Image.new("1", (10_000, 9_000)))], "more than 89478485 pixels"),
        ([TAGGED], [Image.new("RGB", (3000, 2))], "too thin"),
    ],
)
def test_wrong_items(encoder: VLM2Vec, texts: list | str | None, images: list | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder.encode(texts, images)


def test_pictures_of_other_kinds(encoder: VLM2Vec) -> None:
    """CMYK and palettes are converted, the first frame of an animation counts, EXIF does not turn a picture."""
    red = Image.new("RGB", (12, 8), (255, 0, 0))
    animation, turned, cmyk = io.BytesIO(), io.BytesIO(), io.BytesIO()
    red.save(animation, "GIF", save_all=True, append_images=[Image.new("RGB", (12, 8), "blue")])
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    red.save(turned, "PNG", exif=exif)
    red.convert("CMYK").save(cmyk, "JPEG", quality=100, subsampling=0)
    files = [png(red), animation.getvalue(), turned.getvalue(), png(red.quantize(4)), cmyk.getvalue()]
    vectors = encoder.encode(images=files)
    for vector in vectors[1:4]:
        torch.testing.assert_close(vector, vectors[0], rtol=0, atol=1e-6)
    assert vectors[0] @ vectors[4] > 0.999


@pytest.fixture(scope="module")
def mixed_items() -> tuple[list[str], list[Image.Image | None]]:
    """Texts of 2 to 4,300 tokens and pictures, in no order."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size)) for size in (1, 3, 2500, 7)]
    images: list[Image.Image | None] = [None] * len(texts)
    for place, name in ((1, "images/rgba.png"), (3, "images/square.png")):
        texts[place], images[place] = "<|image_1|> " + texts[place], golden.image(name)
    return texts, images


def test_the_same_vector_in_any_company(
    golden_model_dir: Path, mixed_items: tuple[list[str], list[Image.Image | None]]
) -> None:
    encoder = VLM2Vec.from_pretrained(golden_model_dir, num_crops=1, max_len=None, dtype=torch.float32)
    texts, images = mixed_items
    longest = max(len(encoder.processor.tokenize(text)) for text in texts)
    assert longest > 4096  # the length from which on the long rope factors apply
    alone = torch.cat([encoder.encode([text], [image]) for text, image in zip(texts, images, strict=True)])
    for batch_tokens in (600, 10 * longest):
        together = encoder.encode(texts, images, batch_tokens=batch_tokens)
        assert (together - alone).abs().max() < 1e-6
    strict = encoder.encode(texts, images, batch_tokens=10 * longest, strict_original=True)
    short = [index for index, text in enumerate(texts) if len(text) < 1000]
    assert (strict - alone).abs()[short].amax(dim=1).min() > 1e-3
    processed = [
        encoder.processor.process_item(text, [image] if image else [])
        for text, image in zip(texts, images, strict=True)
    ]
    with torch.no_grad():
        batch = collate_items(processed, encoder.processor.pad_token_id)
        expected = encoder(**batch, strict_original=True)
    torch.testing.assert_close(strict, expected, rtol=0, atol=1e-6)


def test_strict_original_keeps_neighbours() -> None:
    assert plan_batches([3, 9, 2, 4], batch_tokens=10, keep_order=True) == [[0], [1], [2, 3]]
    assert plan_batches([3, 9, 2, 4], batch_tokens=10) == [[1], [3, 0], [2]]
    assert plan_batches([50, 60], batch_tokens=10) == [[1], [0]]  # one item always fits


def test_max_len(golden_model_dir: Path) -> None:
    encoder = VLM2Vec.from_pretrained(golden_model_dir, num_crops=1, max_len=6, dtype=torch.float32)
    long = "A cat and a dog and a bird"
    kept = encoder.processor.tokenizer.decode(encoder.processor.tokenize(long, (), 6), skip_special_tokens=True)
    first, second = encoder.encode([long, kept])
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def test_pictures_are_opened_as_they_are_needed(encoder: VLM2Vec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat memory: at no time are more than three batches' pictures decoded."""
    opened, finished, most = 0, 0, 0
    process, forward = EncodeItem.process, encoder.forward

    def counting_process(self: EncodeItem, *args: object) -> object:
        nonlocal opened, most
        opened += 1
        most = max(most, opened - finished)
        return process(self, *args)

    def counting_forward(**batch: torch.Tensor) -> torch.Tensor:
        nonlocal finished
        result = forward(**batch)
        finished += len(result)
        return result

    monkeypatch.setattr(EncodeItem, "process", counting_process)
    monkeypatch.setattr(encoder, "forward", counting_forward)
    picture = golden.PHI3V / "images/rgba.png"
    encoder.encode(images=[picture] * 24, batch_tokens=700)  # two items a batch
    assert opened == 24
    assert most <= 2 * 4


def test_progress(encoder: VLM2Vec, capsys: pytest.CaptureFixture[str]) -> None:
    encoder.encode(["a", "b"])
    assert not capsys.readouterr().err
    encoder.encode(["a", "b"], show_progress=True)
    assert "2/2" in capsys.readouterr().err
    encoder.encode(["a"] * 300)
    assert "300/300" in capsys.readouterr().err
    encoder.encode(["a"] * 300, show_progress=False)
    assert not capsys.readouterr().err


def test_encode_leaves_the_mode_alone(encoder: VLM2Vec) -> None:
    encoder.train()
    encoder.encode(["a"])
    assert encoder.training
    encoder.eval()
    encoder.encode(["a"])
    assert not encoder.training


def test_similarity(encoder: VLM2Vec) -> None:
    vectors = encoder.encode(["a", "b", "c"])
    scores = encoder.similarity(vectors[:2], vectors.numpy())
    torch.testing.assert_close(scores, vectors[:2] @ vectors.T)


def test_save_and_load(encoder: VLM2Vec, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    again = VLM2Vec.from_pretrained(tmp_path)
    assert again.processor.num_crops == 1
    assert torch.equal(again.encode(["a"]), encoder.encode(["a"]))
    assert not list(tmp_path.glob(".*"))


def test_unnormalised_vectors(golden_model_dir: Path) -> None:
    encoder = VLM2Vec.from_pretrained(golden_model_dir, dtype=torch.float32, normalize=False)
    assert encoder.encode(["A cat"]).norm() > 2
