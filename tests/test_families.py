"""House rule: nothing outside backbones/ knows a model family, a crop or a patch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from vlm2vec.backbones.registry import model_types

REPOSITORY = Path(__file__).parents[1]
SOURCES = ("vlm2vec", "data_prep", "eval")
# Where families live: the folder of the library, and their miniatures.
FAMILIES = ("vlm2vec/backbones", "data_prep/mini/models")

# Words or parts of identifiers. After a letter it is another word ("graphic", "dispatch", "monkeypatch").
_NAMES = "phi qwen llava llama mllama gemma mistral internvl siglip paligemma florence idefics"
_FORBIDDEN = re.compile(
    rf"(?<![A-Za-z])(?i:{'|'.join(_NAMES.split())})(?![a-z])"
    r"|(?<![A-Za-z])(?:[Cc]rop|CROP|[Pp]atch|PATCH)|(?<=[a-z])(?:Crop|Patch)"
    # The family of vision towers: to clip a gradient or a number is English.
    r"|(?<![A-Za-z])CLIP(?!P)|(?<![A-Z])Clip(?=[A-Z])"
)


@dataclass(frozen=True)
class Allowed:
    """Lines that may name what the rule forbids.

    Attributes:
        file: From the repository's root.
        text: What such a line contains.
        reason: Why it stays.
    """

    file: str
    text: str
    reason: str


ALLOWED = (
    Allowed("vlm2vec/mmeb.py", "CLIP", "published scores, by the models' names"),
    Allowed("vlm2vec/mmeb.py", "Phi-3.5-V with 4 crops", "which model the published scores are of"),
    Allowed("vlm2vec/training/checkpoints/state_files.py", "serialization.patch", "the name of a function of torch"),
    Allowed("vlm2vec/contrastive/temperature.py", "CLIP", "the paper that a trained temperature comes from"),
    Allowed("vlm2vec/contrastive/loss.py", "CLIP", "the paper that the loss in both directions comes from"),
    Allowed("data_prep/mini_model.py", "phi3_v", "the family of the miniature where none is named"),
    Allowed("data_prep/mini/drawing.py", "crop", "squares cut from photographs: what the miniature draws"),
    Allowed("data_prep/mini/drawing.py", "CROP_S", "their size"),
    Allowed("data_prep/mini/tasks.py", "crop", "the same"),
    Allowed("data_prep/mini/tasks.py", "TARGET_CROP", "MMEB's prompt for the part of an image"),
    Allowed("data_prep/mini/prompts.py", "cropped image of the object", "MMEB's prompt for the part of an image"),
)


@cache
def _model_types() -> tuple[str, ...]:
    return model_types()  # looks through all installed packages


def forbidden(line: str) -> list[str]:
    """What a line says that only backbones/ may say."""
    return [name for name in _model_types() if name in line] + _FORBIDDEN.findall(line)


def lines() -> Iterator[tuple[str, int, str]]:
    """File, number and text of every line of the sources that the rule is about."""
    for folder in SOURCES:
        for path in sorted((REPOSITORY / folder).rglob("*")):
            file = path.relative_to(REPOSITORY).as_posix()
            if not path.is_file() or path.suffix == ".pyc" or file.startswith(tuple(f"{each}/" for each in FAMILIES)):
                continue
            yield file, 0, file  # the name of a file counts too
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                yield file, number, line


def test_a_family_lives_in_backbones_alone() -> None:
    used, wrong = set(), []
    for file, number, line in lines():
        if words := forbidden(line):
            allowed = [each for each in ALLOWED if each.file == file and each.text in line]
            used |= set(allowed)
            if not allowed:
                wrong.append(f"{file}:{number}: {', '.join(words)}: {line.strip()}")
    assert not wrong, "\n".join(["say it in vlm2vec/backbones/ and ask the family here:", *wrong])
    assert set(ALLOWED) - used == set(), "these lines are not there any more"


@pytest.mark.parametrize(
    "line",
    [
        *("from vlm2vec.backbones.phi3_v import X", "class Phi3VConfig", "as Phi-3.5 has it", "_CROPS_OF_PHI_3_5 = 4"),
        *("num_crops", "Crops per image", "CROP_SIZE", "photo_crop", "cropped", "perCrop", "self.crop_size"),
        *("patch_size", "a patch", "Patches", "numPatches", "patchify", "the CLIP tower", "CLIPModel", "ClipConfig"),
        *("qwen2_vl", "Qwen2-VL", "QWEN", "is_qwen", "Qwen3VLModel", "LLaVA", "llava_next"),
    ],
)
def test_names_of_families_are_found(line: str) -> None:
    assert forbidden(line)


@pytest.mark.parametrize(
    "line",
    [
        *("__torch_dispatch__", "DISPATCH", "monkeypatch", "TorchDispatchMode", "despatched"),
        *("infographic", "GraphicControl", "clip_grad", "np.clip(x)", "gradient_clipping", "Clip the norm", "eclipse"),
        *("microprocessor", "phial", "philosophy", "sophistry"),
    ],
)
def test_english_words_are_not(line: str) -> None:
    assert not forbidden(line)
