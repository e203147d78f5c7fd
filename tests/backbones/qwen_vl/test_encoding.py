"""End to end: `VLM2Vec.encode` gives the reference's vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.rig import golden, qwen_golden
from tests.rig.comparing import assert_close_relative
from tests.rig.qwen_items import FORMATS, encode_arguments, items_of
from tests.rig.qwen_models import MODELS, copied
from vlm2vec import VLM2Vec
from vlm2vec.errors import InputError

pytestmark = pytest.mark.numeric
families = pytest.mark.parametrize("family", MODELS)


def cases(family: str) -> list[dict[str, Any]]:
    """Those whose prompts are the format's, and that are quick."""
    return [
        case
        for case in qwen_golden.read(family, "model_cases/cases.json")["cases"]
        if (family == "qwen3_vl" or case["positions"].startswith("1-D")) and case["case"] != "big"
    ]


@families
@qwen_golden.RESIZED
def test_vectors_of_the_reference(family: str) -> None:
    """All cases in one list, which is cut into batches by length."""
    encoder = VLM2Vec.from_pretrained(
        qwen_golden.model_folder(family), dtype=torch.float32, prompt_format=FORMATS[family], max_len=None
    )
    items = [item for case in cases(family) for item in items_of(family, case.get("items") or case)]
    expected = torch.cat([qwen_golden.tensors(family, case["file"])["embedding"] for case in cases(family)])
    vectors = encoder.encode(**encode_arguments(items))
    assert len(vectors) == len(expected) > 15
    assert (vectors - expected).abs().max() < golden.EMBEDDING_LIMIT


@families
def test_a_saved_model_encodes_as_before(family: str, tmp_path: Path) -> None:
    encoder = VLM2Vec.from_pretrained(
        qwen_golden.model_folder(family), dtype=torch.float32, prompt_format=FORMATS[family], max_pixels=50_000
    )
    image = qwen_golden.image(family, "images/wide.png")
    vectors = encoder.encode(["hello", "<|image_1|> what?"], [None, image])
    encoder.save_pretrained(tmp_path / "saved")
    again = VLM2Vec.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert again.settings == encoder.settings
    assert torch.equal(again.encode(["hello", "<|image_1|> what?"], [None, image]), vectors)
    apart = again.encode(["<|image_1|> what?"], [image])
    assert_close_relative(apart[0], vectors[1], 1e-5)


def test_a_processor_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = copied("qwen2_5_vl", tmp_path / "model")
    encoder = VLM2Vec.from_pretrained(folder, prompt_format="vlm2vec")
    encoder.processor.table = 56  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"window_size is 56, the model's is 112"):
        encoder.base.check_processor(encoder.processor, folder)
