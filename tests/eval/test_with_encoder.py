"""The evaluation programs with a real, tiny encoder instead of chosen vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from data_prep.mini_model import build_mini_model
from eval import mmeb, report
from eval.mmeb_flags import EncoderArguments, parse_arguments
from eval.model import load_encoder, resolve_model, use_settings
from tests.rig.comparing import assert_close_relative, relative_error
from trials.rig.hand_made_eval import row
from vlm2vec import VLM2Vec
from vlm2vec.backbones.prompts import Prompt, PromptFormat
from vlm2vec.choices import LoraSettings
from vlm2vec.device import device_of_rank
from vlm2vec.errors import EXIT_BAD_INPUT, InputError, run_program
from vlm2vec.model_folder.settings import SETTINGS_FILE, ModelSettings

pytestmark = pytest.mark.numeric

PROMPT = "<|image_1|>\nRepresent the given image.\n"
COLOURS = ("red", "lime", "blue", "white", "black", "orange")
SAME = [f"{colour}.png" for colour in COLOURS]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain images: each finds itself among others (certain), its name among names (anything)."""
    folder = tmp_path_factory.mktemp("mmeb")
    (folder / "images").mkdir()
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (40 + 9 * number, 30), colour).save(folder / "images" / f"{colour}.png")
    Image.fromarray(np.arange(90 * 40 * 3, dtype=np.uint8).reshape(40, 90, 3)).save(folder / "images" / "wide.png")
    same = [row(PROMPT, [PROMPT] * 6, name, [name, *(other for other in SAME if other != name)]) for name in SAME]
    names = [row(PROMPT, [colour, *(set(COLOURS) - {colour})], f"{colour}.png") for colour in COLOURS]
    for dataset, rows in (("same", same), ("names", names)):
        (folder / "eval" / dataset).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "eval" / dataset / "test-00000-of-00001.parquet")
    (folder / "train" / "Colours").mkdir(parents=True)
    texts = [{"qry": PROMPT, "qry_image_path": "", "pos_text": f"it is {c}", "pos_image_path": ""} for c in COLOURS]
    pq.write_table(pa.Table.from_pylist(texts), folder / "train" / "Colours" / "original-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def model(data: Path) -> Path:
    build_mini_model(data / "train", data / "model", seed=0)
    return data / "model"


@pytest.fixture(scope="module")
def adapter(data: Path, model: Path) -> Path:
    """An adapter that changes the vectors: fresh ones are the identity."""
    encoder = VLM2Vec.from_pretrained(model)
    encoder.add_lora()
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0.0, 0.5)
    encoder.save_pretrained(data / "adapter")
    return data / "adapter"


def options(data: Path, model: Path, output: str, *more: str) -> list[str]:
    return [
        *("--model_name", str(model), "--dataset_name", str(data / "eval"), "--image_dir", str(data / "images")),
        *("--encode_output_path", str(data / output), "--dataloader_num_workers", "0", *more),
    ]


def scores(data: Path, output: str) -> Any:
    return json.loads((data / output / "scores.json").read_text())


def test_an_image_finds_itself_and_the_report_shows_it(
    data: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mmeb.main(options(data, model, "full", "--normalize", "True", "--pooling", "last"))
    full = scores(data, "full")
    assert full["datasets"]["same"]["acc"] == 1.0
    assert full["datasets"]["same"]["chance"] == pytest.approx(1 / 6)
    assert full["num_items"] == 12
    assert full["model"]["num_crops"] == json.loads((model / "preprocessor_config.json").read_text())["num_crops"]
    predictions = (data / "full" / "same_pred.txt").read_text().splitlines()
    assert predictions == [repr((PROMPT, name)) for name in SAME]
    report.main([str(data / "full")])
    assert "| same |  | 16.7 | 100.0 |" in (data / "full" / "report.md").read_text()
    capsys.readouterr()


def test_the_chosen_names_are_those_of_the_encoder(data: Path, model: Path) -> None:
    mmeb.main(options(data, model, "names", "--subset_name", "names"))
    encoder = VLM2Vec.from_pretrained(model)
    images = encoder.encode(texts=[PROMPT] * 6, images=[str(data / "images" / name) for name in SAME])
    best = np.asarray(VLM2Vec.similarity(images, encoder.encode(texts=list(COLOURS)))).argmax(axis=1)
    predictions = (data / "names" / "names_pred.txt").read_text().splitlines()
    assert predictions == [repr((COLOURS[index], "")) for index in best]


def test_the_batch_size_changes_no_score(data: Path, model: Path) -> None:
    mmeb.main(options(data, model, "packed"))
    mmeb.main(options(data, model, "ones", "--per_device_eval_batch_size", "1"))
    assert scores(data, "packed")["datasets"] == scores(data, "ones")["datasets"]


def test_an_adapter_is_scored_with_and_without_naming_its_base(data: Path, model: Path, adapter: Path) -> None:
    mmeb.main(options(data, model, "full"))
    mmeb.main(options(data, model, "lora", "--lora", "--checkpoint_path", str(adapter)))
    mmeb.main(options(data, adapter, "lora_alone", "--lora"))
    full, lora, alone = (scores(data, output) for output in ("full", "lora", "lora_alone"))
    assert lora["datasets"] == alone["datasets"]
    assert lora["model"]["fingerprint"] == alone["model"]["fingerprint"] != full["model"]["fingerprint"]


def test_the_options_reach_the_encoder(data: Path, model: Path, adapter: Path) -> None:
    def vectors(*more: str) -> np.ndarray:
        arguments, _ = parse_arguments(options(data, model, "unused", *more))
        folders = resolve_model(arguments)
        encoder = load_encoder(folders, use_settings(arguments, folders)[0], device_of_rank())
        long = "a long text of many words " * 4
        return np.asarray(encoder.encode(texts=[PROMPT, long], images=[str(data / "images" / "wide.png"), None]))

    def changed(name: str, value: str) -> list[str]:
        return [f"--{name}", value, "--allow_changed", name]

    (model / SETTINGS_FILE).write_text('{"max_len": 32, "num_crops": 4}')
    plain = vectors()
    image_differs, text_differs = 0, 1
    assert relative_error(vectors(*changed("num_crops", "1"))[image_differs], plain[image_differs]) > 1e-3
    assert relative_error(vectors(*changed("max_len", "8"))[text_differs], plain[text_differs]) > 1e-3
    assert relative_error(vectors("--lora", "--checkpoint_path", str(adapter)), plain) > 1e-3
    raw = vectors("--normalize", "False")
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.1
    assert_close_relative(raw / lengths, plain, 1e-5)


def test_a_model_is_scored_as_it_was_trained_unless_told_otherwise(
    data: Path, model: Path, adapter: Path, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "trained")
    (tmp_path / "trained" / SETTINGS_FILE).write_text('{"max_len": 16}')
    trained = options(data, tmp_path / "trained", "as_trained", "--subset_name", "names")
    mmeb.main(trained)
    assert {name: scores(data, "as_trained")["model"][name] for name in ("max_len", "num_crops", "normalize")} == {
        "max_len": 16,
        "num_crops": 4,
        "normalize": True,
    }
    for flag, value, other in (("max_len", "64", 16), ("num_crops", "1", 4)):
        with pytest.raises(InputError, match=f"--{flag} {value} instead of {other}.* add --allow_changed {flag}"):
            mmeb.main([*trained, f"--{flag}", value])
    with pytest.raises(
        InputError, match="--allow_changed max_len: no effect, the model was not trained with a different"
    ):
        mmeb.main([*trained, "--max_len", "16", "--allow_changed", "max_len"])
    with pytest.raises(InputError, match="--allow_changed max_len: no effect without --max_len"):
        mmeb.main([*trained, "--allow_changed", "max_len"])
    output = ["--encode_output_path", str(data / "otherwise")]
    mmeb.main([*trained, *output, "--num_crops", "1", "--allow_changed", "num_crops"])
    line = "scored with settings that differ from training: num_crops 1 instead of 4"
    assert line in scores(data, "otherwise")["warnings"]
    report.main([str(data / "otherwise")])
    assert f"otherwise: {line}." in (data / "otherwise/report.md").read_text()


def test_an_unreadable_image_is_named_with_its_row(data: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad = row(PROMPT, ["x", "y"], "broken.png")
    (data / "bad" / "own").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist([row("q", ["x", "y"]), bad]), data / "bad" / "own" / "test-00000-of-00001.parquet"
    )
    (data / "images" / "broken.png").write_bytes((data / "images" / "red.png").read_bytes()[:60])
    command = [*options(data, model, "bad_out"), "--dataset_name", str(data / "bad")]
    assert run_program(lambda: mmeb.main(command)) == EXIT_BAD_INPUT
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "test-00000-of-00001.parquet row 1: " in lines[0]
    assert "broken.png" in lines[0]
    assert [path.name for path in (data / "bad_out").iterdir()] == ["embeddings"]


def test_an_adapter_on_another_base_needs_a_flag(golden_model_dir: Path, tmp_path: Path) -> None:
    encoder = VLM2Vec.from_pretrained(golden_model_dir, num_crops=1)
    encoder.add_lora(LoraSettings(r=2))
    encoder.save_pretrained(tmp_path / "adapter")
    encoder.merge_lora()
    with torch.no_grad():
        encoder.base.model.layers[0].mlp.down_proj.weight.mul_(1.1)
    encoder.save_pretrained(tmp_path / "other")

    def scored(base: Path, **options: Any) -> dict[str, str]:
        arguments = EncoderArguments(str(base), lora=True, checkpoint_path=str(tmp_path / "adapter"), **options)
        return use_settings(arguments, resolve_model(arguments))[1]

    assert scored(golden_model_dir) == {}
    with pytest.raises(InputError, match=r"a different base model.*--allow_other_base"):
        scored(tmp_path / "other")
    assert "a different base model" in scored(tmp_path / "other", allow_other_base=True)["base model"]
    with pytest.raises(InputError, match="--allow_other_base: no effect"):
        scored(golden_model_dir, allow_other_base=True)


def test_a_model_is_scored_with_the_prompts_that_it_was_trained_with(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The family's only built-in format is another one than the folder's."""
    own = PromptFormat(name="own", images="first", template="{instruction}: {content}", instruction="Represent")
    shutil.copytree(model, tmp_path / "trained")
    ModelSettings(num_crops=4, prompt_format=own).write(tmp_path / "trained")
    trained = options(data, tmp_path / "trained", "own_prompts", "--subset_name", "names")
    for more in (["--prompt_format", "phi3_v"], ["--num_crops", "1"]):
        with pytest.raises(
            InputError, match=rf"{' '.join(more)} instead of (own|4), .*add --allow_changed {more[0][2:]}"
        ):
            mmeb.main([*trained, *more])
    with pytest.raises(
        InputError, match=r"^--min_pixels: a phi3_v has no such limit on its images; use --num_crops, or"
    ):
        mmeb.main([*trained, "--min_pixels", "9"])
    with pytest.raises(
        InputError, match=r'^--prompt_format: "own" is not a known format; this model\'s family supports phi3_v'
    ):
        mmeb.main([*trained, "--prompt_format", "own"])
    seen: list[tuple[str, str]] = []
    rendered = PromptFormat.prompt

    def watched(self: PromptFormat, text: str, num_images: int, instruction: str | None = None) -> Prompt:
        prompt = rendered(self, text, num_images, instruction)
        if text:  # not what a format tries at once
            seen.append((self.name, str(prompt)))
        return prompt

    monkeypatch.setattr(PromptFormat, "prompt", watched)
    mmeb.main(trained)
    found = scores(data, "own_prompts")
    assert found["model"]["prompt_format"] == own.model_dump()
    assert found["warnings"] == []
    assert ("own", f"Represent: {COLOURS[0]}") in seen
    assert any(text.startswith("Represent: <|image_1|>") for _, text in seen)
    changed = ["--prompt_format", "phi3_v", "--allow_changed", "prompt_format"]
    with pytest.raises(InputError, match=r"holds scores with other settings \(prompt_format own, now phi3_v\)"):
        mmeb.main([*trained, *changed])
    seen.clear()
    mmeb.main([*trained, *changed, "--encode_output_path", str(data / "raw_prompts")])
    assert {name for name, _ in seen} == {"phi3_v"}
    assert scores(data, "raw_prompts")["warnings"] == [
        "scored with settings that differ from training: prompt_format phi3_v instead of own"
    ]
    report.main([str(data / "own_prompts")])
    assert "4 crops, prompt format own)" in (data / "own_prompts" / "report.md").read_text()
