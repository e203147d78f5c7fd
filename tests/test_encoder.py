"""`VLM2Vec.encode`: every form of item, the same vector in any batch, streaming."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

from tests.rig import golden
from tests.rig.comparing import assert_close_relative
from trials.rig.run_flags import run_flags
from vlm2vec import VLM2Vec
from vlm2vec.backbones.phi3_v import collate_items
from vlm2vec.errors import InputError
from vlm2vec.inputs import urls
from vlm2vec.inputs.ahead import chunks_ahead
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.item_rules import IMAGE_ONLY_TEXT
from vlm2vec.sentence_transformer import VLM2VecModule
from vlm2vec.training.encoder import build_encoder
from vlm2vec.training.flags.run import parse_arguments

pytestmark = pytest.mark.numeric

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "while", "seven", "wizards", "vex", "queen"]
TAGGED = "<|image_1|> Represent the given image."
SQUARE = Image.new("RGB", (9, 9))
# Other neighbours and paddings of a batch mean other sums; relative to the largest number of a vector.
SAME_VECTOR = 5e-6


@pytest.fixture(scope="module")
def encoder(golden_model_dir: Path) -> VLM2Vec:
    return VLM2Vec.from_pretrained(golden_model_dir, num_crops=1, dtype=torch.float32)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_texts_images_and_both(encoder: VLM2Vec) -> None:
    image = golden.PHI3V / "images/square.png"
    vectors = encoder.encode(
        [TAGGED, TAGGED, TAGGED, None, "", "A cat and a dog"],
        [image, str(image), image.read_bytes(), Image.open(image), image, None],
    )
    assert (vectors.shape, vectors.dtype) == ((6, 64), torch.float32)
    assert_close_relative(vectors.norm(dim=1), torch.ones(6), 1e-6)
    for row in (1, 2, 3, 4):  # an image alone gets the benchmark's prompt
        assert_close_relative(vectors[row], vectors[0], SAME_VECTOR)
    assert_close_relative(encoder.encode(images=[image])[0], vectors[0], SAME_VECTOR)
    expected = golden.tensors("model_cases/text_batch.safetensors")["embedding"][0]
    assert (vectors[5] - expected).abs().max() < golden.EMBEDDING_LIMIT
    assert IMAGE_ONLY_TEXT == TAGGED


def test_an_empty_list(encoder: VLM2Vec) -> None:
    assert encoder.encode([]).shape == (0, 64)


def test_several_images_enter_in_list_order(encoder: VLM2Vec) -> None:
    pair = [golden.image("images/square.png"), golden.image("images/noise.png")]
    ordered, swapped_tags = encoder.encode(["<|image_1|> a <|image_2|>", "<|image_2|> a <|image_1|>"], [pair, pair])
    assert_close_relative(ordered, swapped_tags, SAME_VECTOR)
    swapped_images = encoder.encode(["<|image_1|> a <|image_2|>"], [pair[::-1]])[0]
    assert (ordered - swapped_images).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("texts", "images", "message"),
    [
        (["a", "no tag"], [None, Image.new("RGB", (9, 9))], "item 1: an item with 1 image"),
        (["a", ""], [None, [Image.new("RGB", (9, 9))] * 2], "item 1: an item with 2 image"),
        (["a"], [None, None], "1 texts but 2 images"),
        ("a", None, "must be a list"),
        (None, None, "give texts, images or both"),
        (["a", ""], None, "item 1: empty: neither text nor image"),
        (["a", " \n"], [None, None], r"item 1: the text ' \\n' has no content and there is no image"),
        (["<|image_1|>"], None, "item 0: the text .* has no content and there is no image"),
        (["a", None], [None, []], "item 1: empty: neither text nor image"),
        ([3], None, "item 0: a text must be a string"),
        (["a", b"b"], None, "item 1: a text must be a string, not bytes"),
        (["ok", "cut \ud83d off"], None, r"item 1: the text has half of a surrogate pair .* at character 4"),
        ([f"<|image_{'1' * 5000}|>"], [SQUARE], r"item 0: an item with 1 image has <\|image_1111"),
        (TAGGED, [SQUARE], "texts must be a list with one entry per item, not a single str"),
        (None, SQUARE, "images must be a list with one entry per item, not a single Image"),
        (None, io.BytesIO(), "images must be a list with one entry per item, not a single BytesIO"),
        ({"a", "b"}, None, "texts is a set, which has no order of items; give a list"),
        ({"a": 1}.keys(), None, "texts is a dict_keys, which has no order of items; give a list"),
        ({"text": ["a"]}, None, "texts is a dict, which has no order of items; give a list"),
        ((text for text in "ab"), None, r"texts is a generator, which has no length; give a list, as in list\("),
        (iter(["a"]), None, "texts is a list_iterator, which has no length"),
        (3, None, "texts is a int, which has no length"),
        (pd.DataFrame({"t": ["a"]}), None, "texts is a DataFrame of 2 dimensions; give a list or one column"),
        (np.array([["a"]]), None, "texts is a ndarray of 2 dimensions"),
        (None, np.zeros((9, 9, 3), np.uint8), "images is a ndarray of 3 dimensions; .*PIL.Image.fromarray"),
        (None, torch.zeros(3, 9, 9), "images is a Tensor of 3 dimensions; .*PIL.Image.fromarray"),
        ([TAGGED], [np.zeros((9, 9, 3))], "item 0: an image must be a PIL image, a path or bytes, not ndarray; PIL"),
        ([TAGGED], [[SQUARE, np.zeros((9, 9))]], "item 0: an image must be a PIL image, a path or bytes, not ndarray"),
        ([TAGGED], [{"bytes": b"", "path": None}], "item 0: an image must be a PIL image, a path or bytes, not dict"),
        ([TAGGED], [{b"a"}], "item 0: its images is a set, which has no order"),
        ([TAGGED], [3], "item 0: an image must be a PIL image, a path or bytes, not int"),
        ([TAGGED], [io.BytesIO(b"")], "item 0: an image must be .* not BytesIO; pass its content as bytes"),
        ([TAGGED], [bytearray(b"a")], "item 0: an image must be .* not bytearray; pass its content as bytes"),
        ([TAGGED], ["/nowhere/x.png"], "item 0: /nowhere/x.png: cannot read the image"),
        ([TAGGED], ["a\0b"], "item 0: a\0b: cannot read the image"),
        ([TAGGED], ["/"], "item 0: /: not a file"),
        ([TAGGED], [b""], "item 0: <bytes>: empty file"),
        ([TAGGED], [Image.new("RGB", (0, 9))], "item 0: an image of 0 x 9 pixels has no content"),
        ([TAGGED], [Image.new("La", (9, 9))], "item 0: a PIL image of mode La cannot be decoded"),
        ([TAGGED], [Image.new("F", (9, 9))], "item 0: an image has F pixels"),
        ([TAGGED], [Image.new("1", (10_000, 9_000))], "item 0: an image: 10000 x 9000 is more than 89478485 pixels"),
        ([TAGGED], [b"text"], "not a JPEG"),
        ([TAGGED], [png(Image.new("RGB", (90, 90), "red"))[:-40]], "damaged or truncated"),
        ([TAGGED], [png(Image.new("I;16", (9, 9), 30000))], "more than 8 bits"),
        ([TAGGED], [png(Image.new("1", (10_000, 9_000)))], "more than 89478485 pixels"),
        ([TAGGED], [Image.new("RGB", (3000, 2))], "too thin"),
    ],
)
def test_wrong_items(encoder: VLM2Vec, texts: Any, images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        encoder.encode(texts, images)
    assert "\n" not in str(refusal.value)


def opened(data: bytes, close: bool = False) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if close:
        image.close()
    return image


@pytest.mark.parametrize(
    ("image_format", "kind"),
    [
        *((name, "closed") for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP")),
        *((name, "truncated") for name in ("JPEG", "PNG", "GIF", "BMP")),  # WebP fails at once when it is opened
    ],
)
def test_opened_images_that_cannot_be_decoded(encoder: VLM2Vec, image_format: str, kind: str) -> None:
    """Pillow looks at the pixels of an opened image only when they are needed, and each format fails differently."""
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    data = buffer.getvalue()
    bad = opened(data, close=True) if kind == "closed" else opened(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"^item 1: a PIL image of mode \w+ cannot be decoded, it may be closed, trun"):
        encoder.encode(images=[SQUARE, bad])


def test_arrays_of_pixels(encoder: VLM2Vec) -> None:
    """Colour and grey, as they are, strided, read-only, several an item; other arrays are refused."""
    colour = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    grey = colour[..., 0]
    readonly = colour[::-1]
    readonly.flags.writeable = False
    images: list[Any] = [colour, grey, readonly]
    expected = encoder.encode(images=[Image.fromarray(np.ascontiguousarray(each)) for each in images])
    assert torch.equal(encoder.encode(images=images), expected)
    assert (expected[:, None] - expected[None]).abs().amax(dim=2).fill_diagonal_(1).min() > 1e-3
    pair = ["<|image_1|> <|image_2|>"]
    assert torch.equal(
        encoder.encode(pair, [[colour, grey]]), encoder.encode(pair, [[Image.fromarray(each) for each in images[:2]]])
    )
    for shape, kind in (((9, 9, 4), "uint8"), ((1, 9, 9, 3), "uint8"), ((9, 9), "int64")):
        stated = f"{kind} of {' x '.join(map(str, shape))}; uint8 of height x width x 3"
        for bad in (np.zeros(shape, kind), [np.zeros(shape, kind)]):
            with pytest.raises(InputError, match=f"item 1: an image must be .* not ndarray; .*{stated}"):
                encoder.encode(images=[colour, bad])
    for empty in (np.zeros((0, 9, 3), np.uint8), np.zeros((9, 0), np.uint8)):
        with pytest.raises(InputError, match=r"item 1: .* has no content"):
            encoder.encode(images=[colour, empty])


def test_images_behind_urls(encoder: VLM2Vec, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(url: str, file: Path) -> None:
        asked.append(url)
        file.write_bytes(png(SQUARE))

    monkeypatch.setattr(urls, "fetch", fetch)
    url = "https://host/square.png"
    with pytest.raises(InputError, match=r"item 0: https://host/square.png: a URL, .* allow_urls=True"):
        encoder.encode(images=[url])
    assert asked == []
    expected = encoder.encode(images=[SQUARE, SQUARE])
    assert torch.equal(encoder.encode(images=[url, url], allow_urls=True), expected)
    assert torch.equal(encoder.encode_documents(images=[url, url], allow_urls=True), expected)
    assert asked == [url, url]  # once a call


def test_queries_and_documents(encoder: VLM2Vec) -> None:
    queries = encoder.encode_queries(["a cat", "a dog"], [None, SQUARE], instruction=["Find: {text}\n", "Find:"])
    assert torch.equal(queries, encoder.encode(["Find: a cat\n", "<|image_1|> Find: a dog"], [None, SQUARE]))
    documents = encoder.encode_documents(["a cat", None, "two"], [None, SQUARE, [SQUARE, SQUARE]])
    same = encoder.encode(["a cat", None, "<|image_1|> <|image_2|> two"], [None, SQUARE, [SQUARE, SQUARE]])
    assert torch.equal(documents, same)


def test_an_image_that_vanishes_between_the_two_passes(
    encoder: VLM2Vec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png(SQUARE))

    def removing(*args: Any) -> Any:
        (tmp_path / "a.png").unlink()
        return chunks_ahead(*args)

    monkeypatch.setattr("vlm2vec.encoder.chunks_ahead", removing)
    with pytest.raises(InputError, match=r"item 1: .*a\.png: cannot read the image"):
        encoder.encode(images=[SQUARE, tmp_path / "a.png"])


SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "deque": deque,
    "array of objects": lambda values: np.array([*values, None], dtype=object)[:-1],
    "shuffled column": lambda values: pd.Series(values, index=[2, 0, 3, 1], dtype=object),
    "filtered column": lambda values: pd.Series(["x", *values], dtype=object)[1:],
    "column with labels": lambda values: pd.Series(values, index=list("badc"), dtype=object),
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_sequences_are_read_in_their_order(encoder: VLM2Vec, kind: str) -> None:
    """By place, never by label: an index that was shuffled would pair images with the wrong texts."""
    texts = [f"<|image_1|> {word}" for word in ("five", "seven", "two words", "nine")]
    images: list[Any] = [Image.new("RGB", (40, 40), color) for color in ("red", "lime", "blue", "white")]
    expected = encoder.encode(texts, images)
    assert (expected[:, None] - expected[None]).abs().amax(dim=2).fill_diagonal_(1).min() > 1e-3
    sequence = SEQUENCES[kind]
    for given in ((sequence(texts), images), (texts, sequence(images)), (sequence(texts), sequence(images))):
        assert torch.equal(encoder.encode(*given), expected)
    alone = encoder.encode(images=images)
    assert torch.equal(encoder.encode(images=sequence(images)), alone)


def test_columns_of_other_libraries(encoder: VLM2Vec) -> None:
    texts = ["five", "seven", "two words"]
    expected = encoder.encode(texts)
    columns: list[Any] = [
        np.array(texts),
        pa.array(texts),
        pa.chunked_array([texts[:1], texts[1:]]),
        pa.array(texts).dictionary_encode(),
        pd.Series(texts, dtype="category"),
        pd.Series(texts, dtype=pd.ArrowDtype(pa.string())),
        datasets.Dataset.from_dict({"text": texts})["text"],
    ]
    for column in columns:
        assert torch.equal(encoder.encode(column), expected), type(column)


def test_missing_values_of_columns_mean_none(encoder: VLM2Vec) -> None:
    """pandas reads a missing text as NaN or NA, Arrow as a null."""
    path = str(golden.PHI3V / "images/square.png")
    expected = encoder.encode(["A cat", None], [None, path])
    for texts, images in (
        (pd.Series(["A cat", None], dtype="str"), pd.Series([None, path], dtype=object)),
        (pd.Series(["A cat", pd.NA]), pd.Series([float("nan"), path])),
        (pa.array(["A cat", None]), pa.array([None, [path]])),
    ):
        assert torch.equal(encoder.encode(texts, images), expected)


def test_a_column_that_cannot_be_read_names_the_item(encoder: VLM2Vec) -> None:
    class Broken(list[str]):
        def __iter__(self) -> Iterator[str]:
            yield "a"
            raise OSError("the disk is gone")

    with pytest.raises(InputError, match=r"item 1: texts cannot be read \(OSError: the disk is gone\)"):
        encoder.encode(Broken(["a", "b"]))


def test_vectors_that_are_no_numbers(golden_model_dir: Path) -> None:
    encoder = VLM2Vec.from_pretrained(golden_model_dir, num_crops=1, dtype=torch.float32)
    token = encoder.processor.tokenize("the quick dog")[-1]
    encoder.base.model.embed_tokens.weight.data[token] = float("inf")
    encoder.encode(["A cat"])
    with pytest.raises(InputError, match=r"item 2: the model gives NaN or infinity for it \(for 2 of 4 items\)"):
        encoder.encode(["A cat", "a", "the quick dog", "the quick dog"])


@pytest.mark.parametrize("batch_tokens", [0, -1])
def test_impossible_budgets(encoder: VLM2Vec, batch_tokens: int) -> None:
    with pytest.raises(InputError, match=f"batch_tokens must be at least 1, not {batch_tokens}"):
        encoder.encode(["a"], batch_tokens=batch_tokens)


def test_images_of_other_kinds(encoder: VLM2Vec) -> None:
    """CMYK and palettes are converted, the first frame of an animation counts, EXIF does not turn an image."""
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
        assert_close_relative(vector, vectors[0], SAME_VECTOR)
    assert vectors[0] @ vectors[4] > 0.999


@pytest.fixture(scope="module")
def mixed_items() -> tuple[list[str], list[Image.Image | None]]:
    """Texts of 2 to 4,300 tokens and images, in no order."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size)) for size in (1, 3, 2500, 7)]
    images: list[Image.Image | None] = [None] * len(texts)
    for place, name in ((1, "images/rgba.png"), (3, "images/square.png")):
        texts[place], images[place] = "<|image_1|> " + texts[place], golden.image(name)
    return texts, images


def test_the_same_vector_in_any_batch(
    golden_model_dir: Path, mixed_items: tuple[list[str], list[Image.Image | None]]
) -> None:
    encoder = VLM2Vec.from_pretrained(golden_model_dir, num_crops=1, max_len=None, dtype=torch.float32)
    texts, images = mixed_items
    longest = max(len(encoder.processor.tokenize(text)) for text in texts)
    assert longest > 4096  # the length from which on the long rope factors apply
    alone = torch.cat([encoder.encode([text], [image]) for text, image in zip(texts, images, strict=True)])
    for batch_tokens in (600, 10 * longest):
        together = encoder.encode(texts, images, batch_tokens=batch_tokens)
        assert_close_relative(together, alone, SAME_VECTOR)
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
    assert_close_relative(strict, expected, SAME_VECTOR)


def test_max_len(golden_model_dir: Path) -> None:
    encoder = VLM2Vec.from_pretrained(golden_model_dir, num_crops=1, max_len=6, dtype=torch.float32)
    long = "A cat and a dog and a bird"
    kept = encoder.processor.tokenizer.decode(encoder.processor.tokenize(long, (), 6), skip_special_tokens=True)
    first, second = encoder.encode([long, kept])
    assert_close_relative(first, second, SAME_VECTOR)


def test_images_are_opened_as_they_are_needed(encoder: VLM2Vec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat memory: at no time are more than three batches' images decoded."""
    opened, finished, most = 0, 0, 0
    process, forward = ItemEncoderInputs.process, encoder.forward

    def counting_process(self: ItemEncoderInputs, *args: Any) -> object:
        nonlocal opened, most
        opened += 1
        most = max(most, opened - finished)
        return process(self, *args)

    def counting_forward(**batch: Any) -> torch.Tensor:
        nonlocal finished
        result = forward(**batch)
        finished += len(result)
        return result

    monkeypatch.setattr(ItemEncoderInputs, "process", counting_process)
    monkeypatch.setattr(encoder, "forward", counting_forward)
    image = golden.PHI3V / "images/rgba.png"
    encoder.encode(images=[image] * 24, batch_tokens=700)  # two items a batch
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
    expected = vectors[:2] @ vectors.T
    assert_close_relative(scores, expected, 1e-6)
    rows = [vector.numpy() for vector in vectors]
    shuffled = pd.Series(rows, index=[2, 0, 1])
    for column in (rows, tuple(rows), shuffled, pd.DataFrame(vectors.numpy(), index=[2, 0, 1]), vectors.tolist()):
        assert_close_relative(encoder.similarity(vectors[:2], column), expected, 1e-6)
    refused: tuple[tuple[Any, str], ...] = (
        ({1: rows[0]}, "b is a dict, which has no order"),
        ((row for row in rows), "b is a generator, which has no length"),
        ([rows[0], rows[1][:5]], "b: not vectors of equal length"),
        (["a"], "b: not vectors of equal length"),
    )
    for wrong, message in refused:
        with pytest.raises(InputError, match=message):
            encoder.similarity(vectors, wrong)


def test_save_and_load(encoder: VLM2Vec, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    again = VLM2Vec.from_pretrained(tmp_path)
    assert again.processor.image_limits["num_crops"] == 1
    assert torch.equal(again.encode(["a"]), encoder.encode(["a"]))
    assert not list(tmp_path.glob(".*"))


def test_a_model_goes_to_the_gpu_unless_told_otherwise(
    golden_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dtype stays that of the files; what moves a model itself loads it on the CPU."""
    gpu = torch.device("meta")  # stands in for one
    monkeypatch.setattr("vlm2vec.encoder.device_of_rank", lambda: gpu)
    VLM2Vec.from_pretrained(golden_model_dir, dtype=torch.bfloat16, device="cpu").save_pretrained(tmp_path)
    found = VLM2Vec.from_pretrained(tmp_path)
    assert (found.device, found.base.dtype) == (gpu, torch.bfloat16)
    run = parse_arguments(
        run_flags(tmp_path, tmp_path, tmp_path, "zero2", "--max_steps", "1", "--global_batch_size", "2")
    )
    for elsewhere in (
        VLM2Vec.from_pretrained(tmp_path, device="cpu"),
        VLM2VecModule.load(str(tmp_path)).encoder,
        build_encoder(run.resolve(1, {"zero_optimization": {"stage": 2}}).encoder),
    ):
        assert elsewhere.device == torch.device("cpu")


def test_unnormalised_vectors(golden_model_dir: Path) -> None:
    encoder = VLM2Vec.from_pretrained(golden_model_dir, dtype=torch.float32, normalize=False)
    assert encoder.encode(["A cat"]).norm() > 2
