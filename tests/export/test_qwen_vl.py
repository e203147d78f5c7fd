"""Exports of the Qwen families (whole, adapter, merged), loaded by transformers, PEFT, sentence-transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tests.rig.golden import EMBEDDING_LIMIT
from tests.rig.qwen_golden import image
from tests.rig.qwen_models import MODELS, copied
from tests.rig.qwen_native import NATIVE, native_embedding
from tests.rig.zero_checkpoints import write_zero2_checkpoint
from vlm2vec import VLM2Vec
from vlm2vec.choices import LoraSettings
from vlm2vec.export import export
from vlm2vec.model_folder.settings import ModelSettings

pytestmark = pytest.mark.numeric
WEIGHTS, HEAD = "model.safetensors", "lm_head.weight"
# Reached by the images; no published file says it.
MAX_PIXELS = 20_000
UNTIED = "qwen2_5_vl"
TWO_IMAGES = "<|image_1|> and <|image_2|>: which is it?"
OF_VLM2VEC = ("base_model.model.model.layers.", "base_model.model.visual.blocks.")
TO_TRANSFORMERS = {r"^model\.layers": "model.language_model.layers", "^visual": "model.visual"}


def changed(encoder: VLM2Vec) -> VLM2Vec:
    """As training leaves an encoder: other numbers in everything that is trained."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return encoder.eval()


@dataclass(frozen=True)
class Case:
    """Two trained encoders of a family, and the folders `base`, `whole`, `adapter` and `merged` of exports."""

    family: str
    root: Path
    whole: VLM2Vec
    adapted: VLM2Vec

    @property
    def is_tied(self) -> bool:
        return self.family != UNTIED


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family: str = request.param
    root = tmp_path_factory.mktemp(family)
    base = copied(family, root / "base")
    if family == UNTIED:
        untie(base, MODELS[family].tensor_names.embeddings)
    whole, adapted = (
        VLM2Vec.from_pretrained(base, dtype=torch.float32, prompt_format="chat", max_pixels=MAX_PIXELS)
        for _ in range(2)
    )
    adapted.add_lora(LoraSettings(r=2, dropout=0.0))
    for name, encoder in (("whole", whole), ("adapter", adapted)):
        write_zero2_checkpoint(changed(encoder), base, root / "runs" / name)
    for name, run in (("whole", "whole"), ("adapter", "adapter"), ("merged", "adapter")):
        export(root / "runs" / run, root / name, merge_lora=name == "merged", check=True)
    return Case(family, root, whole, adapted)


def untie(base: Path, embeddings: str) -> None:
    """Gives a model an output head of its own, as those of 7 billion parameters have."""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    weights = load_file(base / WEIGHTS)
    weights[HEAD] = torch.rand(weights[embeddings].shape, generator=torch.Generator().manual_seed(1))
    save_file(weights, base / WEIGHTS, metadata={"format": "pt"})


def items(family: str) -> dict[str, Any]:
    images = [image(family, f"images/{name}.png").convert("RGB") for name in ("wide", "odd")]
    return {"texts": ["a text", TWO_IMAGES], "images": [None, images]}


def native_vectors(model: PreTrainedModel, case: Case, folder: Path) -> torch.Tensor:
    """Of the same items, in transformers' own code and the chat template as it is published."""
    template = case.adapted.processor.prompt_format
    vectors = []
    for text, images in zip(*items(case.family).values(), strict=True):
        prompt = template.render(text, len(images or []))
        for tag in ("<|image_1|>", "<|image_2|>"):
            prompt = prompt.replace(tag, "<|vision_start|><|image_pad|><|vision_end|>")
        vectors.append(native_embedding(model.eval(), folder, prompt, images or []))
    return torch.stack(vectors)


@pytest.mark.parametrize("kind", ["whole", "merged"])
def test_transformers_loads_a_whole_model(kind: str, case: Case) -> None:
    """Weights, configuration, tokenizer and image processor are those of the folder."""
    folder = case.root / kind
    weights, base = load_file(folder / WEIGHTS), load_file(case.root / "base" / WEIGHTS)
    assert {name: each.shape for name, each in weights.items()} == {name: each.shape for name, each in base.items()}
    assert (HEAD in weights) is not case.is_tied
    native, info = NATIVE[case.family].from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    head = native.get_output_embeddings().weight
    assert torch.equal(head, native.get_input_embeddings().weight if case.is_tied else base[HEAD])
    expected = (case.whole if kind == "whole" else case.adapted).encode(**items(case.family))
    assert_close(native_vectors(native, case, folder), expected)


def test_peft_puts_an_adapter_on_transformers_model(case: Case) -> None:
    """Under VLM2Vec's names, which transformers' modules have not: PEFT gets them explicitly."""
    base, folder = case.root / "base", case.root / "adapter"
    names = load_file(folder / "adapter_model.safetensors").keys()
    begin = ("base_model.model.model.language_model.layers.",) if case.family == "qwen3_vl" else OF_VLM2VEC
    assert all(name.startswith(begin) for name in names)
    native = NATIVE[case.family].from_pretrained(base)
    untrained = native_vectors(native, case, base)
    mapping = {} if case.family == "qwen3_vl" else TO_TRANSFORMERS
    adapted = PeftModel.from_pretrained(native, str(folder), key_mapping=mapping)
    found = native_vectors(adapted.get_base_model(), case, folder)
    assert_close(found, case.adapted.encode(**items(case.family)))
    assert (found - untrained).abs().max() > 0.01


def test_files_are_the_bases(case: Case) -> None:
    base = case.root / "base"
    for kind in ("whole", "merged", "adapter"):
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
            assert (case.root / kind / name).read_bytes() == (base / name).read_bytes()
        assert ModelSettings.read(case.root / kind).max_pixels == MAX_PIXELS
    for kind in ("whole", "merged"):
        before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, case.root / kind))
        added = {"transformers_version", *({"dtype"} if case.family == "qwen3_vl" else ())}
        assert _differing(before, after) - added == set()
        before, after = before["vision_config"], after["vision_config"]
        assert _differing(before, after) <= {"hidden_act", "initializer_range"}
    card = (case.root / "adapter" / "README.md").read_text()
    assert f"\nfrom vlm2vec.backbones.qwen_vl.modeling import {MODELS[case.family].__name__}\n" in card
    card = (case.root / "whole" / "README.md").read_text()
    said = (
        "as in its base: the output head is the token embedding" if case.is_tied else "is the base model's, unchanged"
    )
    assert said in card


def _differing(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Names of values that differ or were added; parts of a model are compared by themselves."""
    names = {name for name in after if not isinstance(after[name], dict)} | before.keys()
    return {name for name in names - {"vision_config"} if before.get(name) != after.get(name)}


def test_sentence_transformers_loads_an_export(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    loaded = SentenceTransformer(str(case.root / "adapter"), trust_remote_code=True, device="cpu")
    texts, images = items(case.family).values()
    found = loaded.encode([texts[0], {"text": texts[1], "image": images[1]}])
    assert_close(torch.from_numpy(found), case.adapted.encode(**items(case.family)))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() < EMBEDDING_LIMIT
