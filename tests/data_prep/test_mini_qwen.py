"""The miniatures of the Qwen-VL families: their tokenizers, and the number of tokens per digit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data_prep.mini.drawing import TILE_SIZE
from data_prep.mini_model import build_mini_model
from tests.rig import golden
from vlm2vec import VLM2Vec

pytestmark = pytest.mark.numeric
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module", params=FAMILIES)
def model_dir(request: pytest.FixtureRequest, mini_mmeb_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mini") / str(request.param)
    build_mini_model(mini_mmeb_dir / "MMEB-train", folder, family=folder.name)
    return folder


def test_the_tokenizer_has_qwens_pipeline(model_dir: Path) -> None:
    ours = json.loads((model_dir / "tokenizer.json").read_text())
    reference = json.loads((golden.ROOT / model_dir.name / "model/tokenizer.json").read_text())
    for part in reference.keys() - {"model", "added_tokens"}:
        assert ours[part] == reference[part], part
    for part in reference["model"].keys() - {"vocab", "merges"}:
        assert ours["model"][part] == reference["model"][part], part
    flags = [{key: value for key, value in token.items() if key != "id"} for token in ours["added_tokens"]]
    assert flags == [{key: value for key, value in token.items() if key != "id"} for token in reference["added_tokens"]]


def test_a_digit_is_a_token(model_dir: Path) -> None:
    processor = VLM2Vec.from_pretrained(model_dir).processor
    sizes = (
        (TILE_SIZE, TILE_SIZE),
        (2 * TILE_SIZE, TILE_SIZE),
        (2 * TILE_SIZE, 2 * TILE_SIZE),
        (4 * TILE_SIZE, TILE_SIZE),
    )
    assert [processor.num_image_tokens(*size) for size in sizes] == [1, 2, 4, 4]
    for text in ("seven", " the", "Represent", "\n"):
        assert len(processor.tokenizer(text)["input_ids"]) == 1, text
    added = len(processor.tokenize("seven", instruction=None)) - 1  # of the prompt format's template
    assert added == 0 if processor.prompt_format.template == "{content}" else added < 25
    text = "Grüße, ∑ and tabs\t!"
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text


def test_vectors_differ_before_training(model_dir: Path) -> None:
    encoder = VLM2Vec.from_pretrained(model_dir)
    images = [golden.PHI3V / "images" / name for name in ("square.png", "wide.png", "noise.png", "rgba.png")]
    vectors = encoder.encode(texts=["three", "seven", "a cat", "a dog", *[None] * 4], images=[*[None] * 4, *images])
    scores = encoder.similarity(vectors, vectors) - 2 * torch.eye(8)
    assert scores.max() < 0.9999
