"""`vlm2vec_config.json`, and the checks of JSON files in general."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm2vec import VLM2Vec
from vlm2vec.backbones.phi3_v import Phi3VProcessor
from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.choices import LoraSettings
from vlm2vec.errors import InputError
from vlm2vec.files import is_lfs_pointer, refuse_lfs_pointer
from vlm2vec.formats.json_files import read_json
from vlm2vec.model_folder.settings import SETTINGS_FILE, ChangedSettingWarning, ModelSettings
from vlm2vec.model_folder.weights import weights_fingerprint

PHI = PromptFormat(name="phi3_v")
CHAT = PromptFormat(name="chat", template="{instruction}\n{content}", instruction="Represent it.")
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 123456\n"


def test_round_trip(tmp_path: Path) -> None:
    settings = ModelSettings(max_len=None, normalize=False, num_crops=9)
    settings.write(tmp_path)
    again = ModelSettings.read(tmp_path)
    assert again == settings
    assert again.stored == {
        "max_len": None,
        "pooling": "last",
        "normalize": False,
        "num_crops": 9,
        "base_fingerprint": None,
    }


def test_a_folder_without_the_file_has_the_defaults(tmp_path: Path) -> None:
    assert ModelSettings.read(None, tmp_path) == ModelSettings(max_len=256, pooling="last", normalize=True)
    assert ModelSettings.read(tmp_path).stored == {}


def test_the_first_folder_with_the_file_decides(tmp_path: Path) -> None:
    for name, max_len in (("adapter", 16), ("base", 32)):
        (tmp_path / name).mkdir()
        ModelSettings(max_len=max_len).write(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert ModelSettings.read(tmp_path / "adapter", tmp_path / "base").max_len == 16
    assert ModelSettings.read(tmp_path / "empty", tmp_path / "base").max_len == 32


def test_explicit_arguments_win_and_differences_are_reported(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text('{"max_len": 16}')
    used, lines = ModelSettings.read(tmp_path).with_arguments(max_len=64, normalize=False)
    assert (used.max_len, used.normalize) == (64, False)
    assert lines == ["max_len is 64, but the model was saved with max_len 16; its embeddings will differ"]
    assert ModelSettings.read(tmp_path).with_arguments(max_len=16)[1] == []
    with pytest.raises(InputError, match="arguments: max_len is 0; "):
        ModelSettings.read(tmp_path).with_arguments(max_len=0)


def test_what_makes_no_difference_is_not_reported(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text('{"pooling": "eos", "num_crops": null}')
    assert ModelSettings.read(tmp_path).with_arguments(pooling="last", num_crops=4)[1] == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"max_len": 0}', "max_len is 0; "),
        ('{"max_len": -5}', "max_len is -5; "),
        ('{"max_len": 1e12}', "max_len is 1000000000000.0; "),
        ('{"max_len": 1000000000000}', "max_len is 1000000000000; "),
        ('{"max_len": "16"}', 'max_len is "16"; '),
        ('{"max_len": true}', "max_len is true; "),
        ('{"max_len": [16]}', "max_len is [16]; "),
        ('{"pooling": "mean"}', 'pooling is "mean"; '),
        ('{"normalize": 1}', "normalize is 1; "),
        ('{"num_crops": 1e9}', "num_crops is 1000000000.0; "),
        ('{"max_pixels": 0}', "max_pixels is 0; "),
        ('{"prompt_format": "chat"}', 'prompt_format is "chat"; '),
        ('{"prompt_format": {"positions": "1d"}}', 'prompt_format.positions is "1d"; '),
        ('{"prompt_format": {"template": "x"}}', 'template is "x"; it needs {content} exactly once'),
        ('{"prompt_format": {"marker": "x"}}', "prompt_format.marker is not a setting that this version knows"),
        ('{"max_length": 16}', "max_length is not a setting that this version knows"),
        ("[16]", "expected a JSON object, not [16]"),
        ("", "cannot be read as JSON"),
        ('{"max_len": NaN}', "NaN is not a number in JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        (LFS_POINTER.decode(), "a Git LFS pointer, not the file itself"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / SETTINGS_FILE).write_text(content)
    with pytest.raises(InputError) as refusal:
        ModelSettings.read(tmp_path)
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / SETTINGS_FILE}: ")
    assert said in message
    assert "\n" not in message


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match=r"a\.json: cannot be read as JSON"):
        read_json(tmp_path / "a.json")


def test_lfs_pointers(tmp_path: Path) -> None:
    assert is_lfs_pointer(LFS_POINTER)
    assert is_lfs_pointer(LFS_POINTER.replace(b"git-lfs.github", b"hawser.github"))
    assert not is_lfs_pointer(b"version 2 of a text")
    (tmp_path / "a.zip").write_bytes(LFS_POINTER)
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"a\.zip: a Git LFS pointer.*git lfs pull"):
        refuse_lfs_pointer(tmp_path / "a.zip")
    refuse_lfs_pointer(tmp_path / "b.zip")
    refuse_lfs_pointer(tmp_path / "absent.zip")


def saved(encoder: VLM2Vec, folder: Path) -> VLM2Vec:
    encoder.save_pretrained(folder)
    return VLM2Vec.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["model", "adapter", "merged", "configuration"])
def test_every_save_writes_the_settings_and_every_load_reads_them(
    golden_model_dir: Path, tmp_path: Path, kind: str
) -> None:
    chosen: dict[str, Any] = {"max_len": 6, "normalize": False, "num_crops": 1}
    encoder = VLM2Vec.from_pretrained(golden_model_dir, dtype=torch.float32, **chosen)
    chosen["base_fingerprint"] = weights_fingerprint(golden_model_dir)
    if kind != "model":
        encoder.add_lora(LoraSettings(r=2))
    if kind == "merged":
        encoder.merge_lora()
    if kind == "configuration":  # what a checkpoint carries, and its export
        encoder.save_configuration(tmp_path)
        stored = {**chosen, "pooling": "last", "prompt_format": PHI.model_dump()}
        assert ModelSettings.read(tmp_path).stored == stored
        return
    chosen["prompt_format"] = PHI
    again = saved(encoder, tmp_path)
    assert again.settings == ModelSettings(**chosen)
    text = "A cat and a dog and a bird"
    vectors = encoder.eval().encode([text], show_progress=False)
    torch.testing.assert_close(again.encode([text]), vectors)
    assert vectors.norm() > 2
    assert saved(again, tmp_path / "twice").settings == ModelSettings(**chosen)


def test_a_folder_that_says_nothing_has_the_originals_settings(golden_model_dir: Path) -> None:
    encoder = VLM2Vec.from_pretrained(golden_model_dir)
    assert encoder.settings == ModelSettings(
        max_len=256,
        normalize=True,
        num_crops=4,
        prompt_format=PHI,
        base_fingerprint=weights_fingerprint(golden_model_dir),
    )


def test_arguments_win_with_a_warning(golden_model_dir: Path, tmp_path: Path) -> None:
    VLM2Vec.from_pretrained(golden_model_dir, max_len=6, num_crops=1).save_pretrained(tmp_path)
    with pytest.warns(ChangedSettingWarning, match="max_len is None, but the model was saved with max_len 6"):
        assert VLM2Vec.from_pretrained(tmp_path, max_len=None).max_len is None
    with pytest.warns(ChangedSettingWarning, match="num_crops is 9, but the model was saved with num_crops 1"):
        assert VLM2Vec.from_pretrained(tmp_path, num_crops=9).processor.image_limits["num_crops"] == 9
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChangedSettingWarning)
        VLM2Vec.from_pretrained(tmp_path, max_len=6, num_crops=1, normalize=True)
    with pytest.raises(InputError, match="arguments: max_len is -1; "):
        VLM2Vec.from_pretrained(tmp_path, max_len=-1)


def test_files_that_contradict_each_other(golden_model_dir: Path, tmp_path: Path) -> None:
    VLM2Vec.from_pretrained(golden_model_dir, num_crops=1).save_pretrained(tmp_path)
    ModelSettings(num_crops=4).write(tmp_path)
    with pytest.raises(InputError, match=r"preprocessor_config.json says num_crops 1, vlm2vec_config.json says 4"):
        VLM2Vec.from_pretrained(tmp_path)
    with pytest.warns(ChangedSettingWarning):
        assert VLM2Vec.from_pretrained(tmp_path, num_crops=1).processor.image_limits["num_crops"] == 1


def test_a_folder_keeps_its_prompt_format(golden_model_dir: Path, tmp_path: Path) -> None:
    encoder = VLM2Vec.from_pretrained(golden_model_dir, prompt_format=CHAT)
    encoder.save_pretrained(tmp_path)
    assert read_json(tmp_path / SETTINGS_FILE)["prompt_format"] == CHAT.model_dump()
    again = VLM2Vec.from_pretrained(tmp_path)
    assert again.processor.prompt_format == again.settings.prompt_format == CHAT
    raw = Phi3VProcessor.from_pretrained(golden_model_dir)
    assert again.processor.tokenize("a") == raw.tokenize("Represent it.\na")
    with pytest.warns(
        ChangedSettingWarning, match="prompt_format is phi3_v, but the model was saved with prompt_format"
    ):
        assert VLM2Vec.from_pretrained(tmp_path, prompt_format="phi3_v").processor.prompt_format == PHI
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChangedSettingWarning)
        VLM2Vec.from_pretrained(tmp_path, prompt_format=CHAT.model_copy(update={"name": "mine"}))
    changed = CHAT.model_copy(update={"instruction": "Find it."})
    with pytest.warns(
        ChangedSettingWarning, match=r'is chat with instruction "Find it.", but .* chat with instruction "R'
    ):
        VLM2Vec.from_pretrained(tmp_path, prompt_format=changed)


def test_a_folder_from_before_there_were_formats_has_its_familys(golden_model_dir: Path, tmp_path: Path) -> None:
    """As `vlm2vec_config.json` was written by older versions."""
    VLM2Vec.from_pretrained(golden_model_dir).save_pretrained(tmp_path)
    old = {"max_len": 12, "pooling": "last", "normalize": True, "num_crops": 2, "base_fingerprint": None}
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(old))
    (tmp_path / "preprocessor_config.json").unlink()
    encoder = VLM2Vec.from_pretrained(tmp_path)
    assert (encoder.max_len, encoder.processor.image_limits) == (12, {"num_crops": 2})
    assert encoder.processor.prompt_format == PHI
    with pytest.warns(ChangedSettingWarning, match="prompt_format is chat, but the model was saved with .* phi3_v"):
        VLM2Vec.from_pretrained(tmp_path, prompt_format=CHAT)


def test_what_a_family_does_not_have_is_refused(golden_model_dir: Path, tmp_path: Path) -> None:
    """Before weights are read: there are none."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copyfile(golden_model_dir / name, tmp_path / name)
    with pytest.raises(
        InputError, match=r"^min_pixels: a phi3_v has no such limit on its images; use num_crops, or leave it out$"
    ):
        VLM2Vec.from_pretrained(tmp_path, min_pixels=9)
    with pytest.raises(TypeError, match="no option crops"):
        VLM2Vec.from_pretrained(tmp_path, crops=9)
    with pytest.raises(
        InputError, match='prompt_format: "chat" is not a known format; this model\'s family supports phi3_v'
    ):
        VLM2Vec.from_pretrained(tmp_path, prompt_format="chat")
    for written in ({"max_pixels": 9}, {"prompt_format": {"positions": "grid"}}):
        (tmp_path / SETTINGS_FILE).write_text(json.dumps(written))
        with pytest.raises(InputError, match=r"vlm2vec_config.json: .* a phi3_v (has|supports) "):
            VLM2Vec.from_pretrained(tmp_path)
