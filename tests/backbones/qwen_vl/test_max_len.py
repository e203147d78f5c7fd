"""The length limit of texts for published folders, which have no vlm2vec_config.json."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eval.mmeb_flags import EncoderArguments
from eval.model import resolve_model, use_settings
from tests.rig.qwen_models import copied
from trials.rig.run_flags import run_flags
from vlm2vec import VLM2Vec
from vlm2vec.backbones.qwen_vl.items.formats import FORMATS, MAX_LENS
from vlm2vec.backbones.registry import family_of_folder
from vlm2vec.model_folder.loading import choose_settings
from vlm2vec.model_folder.settings import ModelSettings
from vlm2vec.training.encoder import with_model_settings
from vlm2vec.training.flags.run import parse_arguments

# A published folder of each format, and the limit of the code that it was trained or published with.
PUBLISHED = [
    ("qwen2_vl", "VLM2Vec-V2.0", None),
    ("qwen2_vl", "VLM2Vec-Qwen2VL-7B", 4096),
    ("qwen2_vl", "gme-Qwen2-VL-2B-Instruct", 1800),
    ("qwen3_vl", "Qwen3-VL-Embedding-2B", 8192),
    ("qwen2_5_vl", "Qwen2.5-VL-3B-Instruct", 8192),
]


@pytest.mark.parametrize(("family", "name", "limit"), PUBLISHED, ids=[name for _, name, _ in PUBLISHED])
def test_texts_are_as_long_as_in_the_original(tmp_path: Path, family: str, name: str, limit: int | None) -> None:
    """`encode`, a run and an evaluation of the folder all have the limit of its format."""
    folder = copied(family, tmp_path / name)
    encoder = VLM2Vec.from_pretrained(folder)
    assert encoder.max_len == limit
    text = "one two " * 500
    whole = encoder.processor.tokenize(text)
    assert len(whole) >= 1000
    assert encoder.processor.process_item(text, (), encoder.max_len).input_ids.tolist() == whole
    found, encoder.max_len = encoder.encode([text]), 256
    assert not torch.equal(encoder.encode([text]), found)
    if limit is not None:
        assert len(encoder.processor.tokenize("one two " * limit, (), limit)) == limit

    flags = run_flags(folder, folder, folder, "zero2", "--max_steps", "1", "--global_batch_size", "2")
    resolved = parse_arguments(flags).resolve(2, {"zero_optimization": {"stage": 2}})
    assert with_model_settings(resolved)[0].encoder.max_len == limit
    arguments = EncoderArguments(str(folder))
    assert use_settings(arguments, resolve_model(arguments))[0].max_len == limit


def test_the_limit_follows_the_format_in_force(tmp_path: Path) -> None:
    folder = copied("qwen2_vl", tmp_path / "merged")
    family = family_of_folder(folder)
    own = FORMATS["gme"].model_copy(update={"name": "own", "instruction": "Find the same."})
    other = own.model_copy(update={"image_alone": "<|image_1|> ?"})
    for prompt_format, limit in (("vlm2vec_v1", 4096), ("gme", 1800), (own, 1800), (other, 256)):
        settings, lines = choose_settings(folder, None, {"prompt_format": prompt_format}, family)
        assert (settings.max_len, lines) == (limit, [])
    assert choose_settings(folder, None, {"prompt_format": "gme", "max_len": None}, family)[0].max_len is None
    ModelSettings(max_len=99, prompt_format=own).write(folder)
    assert VLM2Vec.from_pretrained(folder).max_len == 99


def test_every_format_has_a_limit() -> None:
    assert MAX_LENS.keys() == FORMATS.keys()
