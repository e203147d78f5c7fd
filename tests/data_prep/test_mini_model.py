"""The tiny model: deterministic, loads like any checkpoint, untrained but not collapsed, overwrites nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data_prep.mini_model import MARK_FILE, build_mini_model, main
from tests.rig import golden
from vlm2vec import VLM2Vec
from vlm2vec.errors import InputError

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def model_dir(mini_mmeb_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mini_model") / "model"
    build_mini_model(mini_mmeb_dir / "MMEB-train", folder)
    return folder


def test_the_seed_decides_every_byte(mini_mmeb_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    train = mini_mmeb_dir / "MMEB-train"
    build_mini_model(train, tmp_path / "same")
    for file in model_dir.iterdir():
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes(), file.name
    build_mini_model(train, tmp_path / "same", seed=1)  # its own folder is replaced
    weights = "model.safetensors"
    assert (tmp_path / "same" / weights).read_bytes() != (model_dir / weights).read_bytes()


def test_vectors_differ_before_training(model_dir: Path) -> None:
    encoder = VLM2Vec.from_pretrained(model_dir)
    images = [golden.PHI3V / "images" / name for name in ("square.png", "wide.png", "noise.png", "rgba.png")]
    vectors = encoder.encode(texts=["three", "seven", "a cat", "a dog", *[None] * 4], images=[*[None] * 4, *images])
    scores = encoder.similarity(vectors, vectors) - 2 * torch.eye(8)
    assert scores.max() < 0.9999
    assert scores[:4, :4].max() < 0.99


def test_the_tokenizer_has_phis_pipeline(model_dir: Path) -> None:
    ours = json.loads((model_dir / "tokenizer.json").read_text())
    reference = json.loads((golden.PHI3V / "tokenizer/tokenizer.json").read_text())
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"):
        assert ours[part] == reference[part], part
    for part in ("type", "unk_token", "fuse_unk", "byte_fallback", "dropout"):
        assert ours["model"][part] == reference["model"][part], part
    flags = [{key: value for key, value in token.items() if key != "id"} for token in ours["added_tokens"]]
    assert flags == [{key: value for key, value in token.items() if key != "id"} for token in reference["added_tokens"]]
    assert list(ours["model"]["vocab"].items())[:259] == list(reference["model"]["vocab"].items())[:259]


def test_words_are_tokens(model_dir: Path) -> None:
    processor = VLM2Vec.from_pretrained(model_dir).processor
    assert len(processor.tokenize("seven")) == 2
    text = "Grüße, ∑ and tabs\t!"
    assert processor.tokenizer.decode(processor.tokenize(text), skip_special_tokens=True) == text


def test_other_folders_are_left_alone(mini_mmeb_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not a mini model"):
        build_mini_model(mini_mmeb_dir / "MMEB-train", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="mini_mmeb"):
        build_mini_model(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_unknown_family_is_one_line(mini_mmeb_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'llava'; there are .*phi3_v") as raised:
        build_mini_model(mini_mmeb_dir / "MMEB-train", tmp_path / "model", family="llava")
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"--family: .*'llava' .*phi3_v"):
        main(["--dataset_name", str(mini_mmeb_dir), "--output_dir", str(tmp_path / "model"), "--family", "llava"])
    assert list(tmp_path.iterdir()) == []


def test_the_mark(model_dir: Path) -> None:
    assert json.loads((model_dir / MARK_FILE).read_text()) == {"seed": 0}
