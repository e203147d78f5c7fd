"""Other libraries load exported folders offline and get the same vectors."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.rig.comparing import assert_close_relative
from vlm2vec import VLM2Vec
from vlm2vec.backbones.phi3_v import Phi3VModel, collate_items
from vlm2vec.errors import InputError
from vlm2vec.export import export
from vlm2vec.export.companions import MODULE_FILE
from vlm2vec.sentence_transformer import VLM2VecModule
from vlm2vec.training.checkpoints.writer import find_checkpoint

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def exported(engine_runs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full model and an adapter."""
    root = tmp_path_factory.mktemp("exported")
    export(find_checkpoint(engine_runs_dir / "zero3"), root / "full")
    export(find_checkpoint(engine_runs_dir / "zero2-lora"), root / "adapter")
    return root


@pytest.fixture
def sentence_transformer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The class, with a cache of its own for the modules that it copies out of folders."""
    from sentence_transformers import SentenceTransformer
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda path, **options: SentenceTransformer(str(path), trust_remote_code=True, device="cpu", **options)


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_sentence_transformers(kind: str, exported: Path, sentence_transformer: Any, tmp_path: Path) -> None:
    encoder = VLM2Vec.from_pretrained(exported / kind)
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    image.save(tmp_path / "image.png")
    question = "Represent the given image with the following question: what is it"
    inputs = [
        "coffee",
        "tea",
        image,
        str(tmp_path / "image.png"),
        {"image": image, "text": question},
        {"image": [image, image], "text": "<|image_1|> and <|image_2|>"},
        {"text": "coffee"},
    ]
    expected = encoder.encode(
        texts=["coffee", "tea", None, None, f"<|image_1|> {question}", "<|image_1|> and <|image_2|>", "coffee"],
        images=[None, None, image, image, image, [image, image], None],
    )
    model = sentence_transformer(exported / kind)
    assert model.get_embedding_dimension() == encoder.hidden_size
    assert model.max_seq_length == 256
    assert_close_relative(model.encode(inputs), expected.numpy(), 5e-6)
    # One kind at a time, a single input, a prompt, small batches.
    assert_close_relative(model.encode(inputs[:2]), expected[:2].numpy(), 5e-6)
    assert_close_relative(model.encode(image), expected[2].numpy(), 5e-6)
    prompted = model.encode([{"image": image, "text": "what is it"}], prompt=question.removesuffix("what is it"))
    assert_close_relative(prompted[0], expected[4].numpy(), 5e-6)
    assert_close_relative(model.encode(inputs, batch_size=2), expected.numpy(), 5e-6)
    # encode_query, encode_document and whole texts are what VLM2Vec's helpers do.
    searched: list[Any] = ["coffee", {"image": image, "text": "tea"}, {"image": [image, image], "text": "two"}]
    texts, images = ["coffee", "tea", "two"], [None, image, [image, image]]
    for instruction in ("Find:", "Find: {text}\n"):
        queries = encoder.encode_queries(texts, images, instruction).numpy()
        assert_close_relative(model.encode_query(searched, prompt=instruction), queries, 5e-6)
        assert_close_relative(model.encode_document(searched, prompt=instruction), queries, 5e-6)
    assert_close_relative(model.encode(searched, prompt=instruction), queries, 5e-6)
    assert_close_relative(model.encode("tea", prompt="green"), encoder.encode(["greentea"])[0].numpy(), 5e-6)
    tagged = model.encode_query(inputs[5], prompt="see ")
    assert_close_relative(tagged, encoder.encode(["see <|image_1|> and <|image_2|>"], [[image] * 2])[0], 5e-6)
    assert model.similarity(model.encode("coffee"), model.encode("coffee")).item() == pytest.approx(1, abs=1e-6)


def test_sentence_transformers_saves_what_it_loads(exported: Path, sentence_transformer: Any, tmp_path: Path) -> None:
    model = sentence_transformer(
        exported / "full", processor_kwargs={"num_crops": 1}, model_kwargs={"dtype": "bfloat16"}
    )
    assert model.dtype == torch.bfloat16
    model.max_seq_length = 3
    model.save(str(tmp_path / "saved"))
    again = sentence_transformer(tmp_path / "saved")
    assert (again.max_seq_length, again[0].encoder.processor.image_limits["num_crops"], again.dtype) == (
        3,
        1,
        torch.bfloat16,
    )
    text = "a text of more than three tokens"
    assert np.array_equal(again.encode(text), model.encode(text))


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.zeros((4, 4, 3), np.uint8), "PIL image"), ({"audio": "x"}, "'audio'"), ({"image": "x", "text": 3}, "string")],
)
def test_inputs_that_sentence_transformers_cannot_pass(
    value: object, reason: str, exported: Path, sentence_transformer: Any
) -> None:
    model = sentence_transformer(exported / "full")
    with pytest.raises((InputError, ValueError), match=reason):
        model.encode(["a text", value])


def test_options_that_sentence_transformers_cannot_pass(exported: Path, sentence_transformer: Any) -> None:
    with pytest.raises(InputError, match="model_kwargs: depth"):
        sentence_transformer(exported / "full", model_kwargs={"depth": 3})


def test_sentence_transformers_refuses_vectors_that_are_no_numbers(mini_model_dir: Path) -> None:
    module = VLM2VecModule(VLM2Vec.from_pretrained(mini_model_dir))
    module.encoder.base.model.embed_tokens.weight.data.fill_(float("nan"))
    with torch.no_grad(), pytest.raises(InputError, match="the model gives NaN or infinity"):
        module(module.preprocess(["a text"]))


def test_the_folder_says_which_package_it_needs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vlm2vec.sentence_transformer", None)  # as if it were not installed
    code = (exported / "full" / MODULE_FILE).read_text()
    with pytest.raises(ImportError, match="vlm2vec-deepspeed"):
        exec(compile(code, MODULE_FILE, "exec"), {})


def test_peft(exported: Path, mini_model_dir: Path) -> None:
    from peft import PeftModel

    encoder = VLM2Vec.from_pretrained(exported / "adapter")
    text = "a three to the left of a seven"
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # of names that transformers or PEFT will drop
        adapted = PeftModel.from_pretrained(Phi3VModel.from_pretrained(mini_model_dir), str(exported / "adapter"))
    adapted.eval()
    batch = collate_items([encoder.processor.process_item(text)], encoder.processor.pad_token_id)
    with torch.no_grad():
        last = adapted(input_ids=batch["input_ids"])[:, -1]
        bare = adapted.get_base_model()
        with adapted.disable_adapter():
            without = bare(input_ids=batch["input_ids"])[:, -1]
    found, plain = (torch.nn.functional.normalize(each, dim=-1) for each in (last, without))
    assert_close_relative(found, encoder.encode(texts=[text]), 5e-6)
    assert (found - plain).abs().max() > 1e-3  # the adapter does something
