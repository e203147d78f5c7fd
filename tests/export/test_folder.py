"""The content of an exported folder, with and without its base model, and refused exports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from vlm2vec import VLM2Vec
from vlm2vec.backbones.phi3_v import Phi3VProcessor
from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.errors import InputError
from vlm2vec.evaluation.aggregation import summarise
from vlm2vec.evaluation.metrics import DatasetScore
from vlm2vec.evaluation.scores_file import scores_text
from vlm2vec.export import export
from vlm2vec.export import folder as folder_module
from vlm2vec.export.base import BaseModel, carry_code_references
from vlm2vec.export.zero_state import zero_weights
from vlm2vec.mmeb import MINI_MMEB
from vlm2vec.model_folder.settings import SETTINGS_FILE, ModelSettings
from vlm2vec.model_folder.weights import LazyTensor, at_hand
from vlm2vec.training.checkpoints.writer import ENCODER_FOLDER, RECORD, RunRecord, find_checkpoint
from vlm2vec.training.flags.run import parse_arguments

LM_HEAD = "lm_head.weight"
AUTO_MAP = {"AutoConfig": "configuration_phi3_v.Phi3VConfig"}


@pytest.fixture(scope="session")
def causal_base(mini_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's model as a published base is: with lm_head, and naming code in a file beside it."""
    base = tmp_path_factory.mktemp("causal") / "base"
    shutil.copytree(mini_model_dir, base)
    weights = load_file(base / "model.safetensors")
    weights[LM_HEAD] = torch.rand(weights["model.embed_tokens.weight"].shape)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text()) | {"auto_map": AUTO_MAP}
    (base / "config.json").write_text(json.dumps(config))
    (base / "configuration_phi3_v.py").write_text("raise RuntimeError('nothing here is run by an export')\n")
    return base


@pytest.fixture
def moved(engine_runs_dir: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies a run's checkpoint to where its base model is not at hand."""

    def copy(name: str) -> Path:
        checkpoint = tmp_path / "moved"
        shutil.copytree(find_checkpoint(engine_runs_dir / name), checkpoint)
        record = json.loads((checkpoint / RECORD).read_text())
        record["arguments"]["model_name"] = "nowhere/base"
        (checkpoint / RECORD).write_text(json.dumps(record))
        return checkpoint

    return copy


@pytest.mark.parametrize("name", ["zero2", "zero2-lora"])
def test_the_output_head_comes_from_the_base(
    name: str, engine_runs_dir: Path, causal_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    exported, checked = export(
        find_checkpoint(engine_runs_dir / name), out, merge_lora="lora" in name, base_model=str(causal_base), check=True
    )
    assert exported.has_lm_head
    assert checked is not None
    assert "names and shapes as the base's" in checked.names
    weights, base = load_file(out / "model.safetensors"), load_file(causal_base / "model.safetensors")
    assert weights.keys() == base.keys()
    assert torch.equal(weights[LM_HEAD], base[LM_HEAD])
    trained = "model.layers.0.self_attn.qkv_proj.weight"
    assert not torch.equal(weights[trained], base[trained])
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["Phi3VForCausalLM"]
    assert config["auto_map"] == AUTO_MAP
    assert (out / "configuration_phi3_v.py").is_file()
    assert "lm_head.weight` is the base model's" in (out / "README.md").read_text()


def test_code_of_a_repository_is_named_not_copied(causal_base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "phi3_v"}')
    carry_code_references(BaseModel("microsoft/Phi-3.5-vision-instruct", causal_base), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    named = "microsoft/Phi-3.5-vision-instruct--configuration_phi3_v.Phi3VConfig"
    assert config == {"model_type": "phi3_v", "auto_map": {"AutoConfig": named}}
    assert not list(tmp_path.glob("*.py"))


def test_without_its_base(moved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The comparison is made on the CPU, wherever models go by default.
    monkeypatch.setattr("vlm2vec.encoder.device_of_rank", lambda: torch.device("meta"))
    exported, checked = export(moved("zero2"), tmp_path / "out", check=True)
    assert not exported.has_lm_head
    assert checked is not None
    assert "not at hand" in checked.names
    card = (tmp_path / "out" / "README.md").read_text()
    assert "was not at hand" in card
    assert ModelCard(card).data.to_dict()["base_model"] == "nowhere/base"


@pytest.mark.parametrize("written", [None, {"max_len": 12, "normalize": False, "num_crops": 2}])
def test_an_export_of_an_older_checkpoint_names_its_prompts(
    written: dict[str, Any] | None, moved: Callable[[str], Path], tmp_path: Path
) -> None:
    """From before settings were saved with a checkpoint, or from before they had a prompt format."""
    checkpoint = moved("zero2")
    file = checkpoint / ENCODER_FOLDER / SETTINGS_FILE
    file.unlink()
    if written is not None:
        file.write_text(json.dumps(written))
    export(checkpoint, tmp_path / "out")
    expected = written or {"max_len": RunRecord.read(checkpoint / RECORD).arguments["max_len"], "num_crops": 4}
    raw = PromptFormat(name="phi3_v")
    assert ModelSettings.read(tmp_path / "out") == ModelSettings(**expected, prompt_format=raw)


@pytest.mark.parametrize("options", [{"merge_lora": True}, {"check": True}])
def test_adapters_that_need_their_base(
    options: dict[str, Any], moved: Callable[[str], Path], mini_model_dir: Path, tmp_path: Path
) -> None:
    checkpoint = moved("zero3-lora")
    with pytest.raises(InputError, match="--base_model"):
        export(checkpoint, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
    export(checkpoint, tmp_path / "out", base_model=str(mini_model_dir), **options)
    VLM2Vec.from_pretrained(tmp_path / "out").encode(texts=["the new place of the base is written down"])


def test_a_base_of_another_size(moved: Callable[[str], Path], golden_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was trained on a different base model"):
        export(moved("zero2-lora"), tmp_path / "out", merge_lora=True, base_model=str(golden_model_dir))
    assert not (tmp_path / "out").exists()


def test_shards_and_precision(engine_runs_dir: Path, tmp_path: Path) -> None:
    checkpoint = find_checkpoint(engine_runs_dir / "zero3")
    export(checkpoint, tmp_path / "whole")
    export(checkpoint, tmp_path / "shards", torch.bfloat16, max_shard_size="100KB")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 5
    assert index["metadata"]["total_size"] == 2 * sum(tensor.numel() for tensor in whole.values())
    for file in files:
        for name, tensor in load_file(file).items():
            assert index["weight_map"].pop(name) == file.name
            assert torch.equal(tensor, whole[name].bfloat16())
    assert not index["weight_map"]
    assert json.loads((tmp_path / "shards" / "config.json").read_text())["dtype"] == "bfloat16"
    VLM2Vec.from_pretrained(tmp_path / "shards")


def test_tokens_survive(engine_runs_dir: Path, mini_model_dir: Path, tmp_path: Path) -> None:
    export(find_checkpoint(engine_runs_dir / "zero2"), tmp_path / "out")
    before, after = (Phi3VProcessor.from_pretrained(folder) for folder in (mini_model_dir, tmp_path / "out"))
    for text in ("", " Represent", "<|user|>\n a<|end|>", "two  spaces, <|endoftext|> x", "naïve 日本"):
        assert after.tokenize(text) == before.tokenize(text)
        # transformers' wrapper, which other programs load, agrees with the pipeline that is used here
        assert after.tokenizer(text)["input_ids"] == before.tokenize(text)
    assert after.tokenize("<|image_1|> x", [3]) == before.tokenize("<|image_1|> x", [3])


def test_the_card_describes_the_run_without_local_paths(engine_runs_dir: Path, tmp_path: Path) -> None:
    model = {"model_name": "/secret/place/model", "checkpoint_path": None, "num_crops": 4, "fingerprint": "0123abcd"}
    accs = {"PairVQA": 0.5, "MosaicGround": 0.0}
    datasets = {name: DatasetScore(acc, int(10 * acc), 10, 0.1, 0, 0, acc, acc, acc, acc) for name, acc in accs.items()}
    summary = {"model": model, "warnings": [], "num_items": 30, **summarise(datasets, MINI_MMEB)}
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "scores.json").write_text(scores_text(summary))
    export(find_checkpoint(engine_runs_dir / "zero2"), tmp_path / "my-model", scores=tmp_path / "scores")
    card = ModelCard.load(tmp_path / "my-model" / "README.md")
    assert card.data.model_name == "my-model"
    values = {(result.dataset_name, result.dataset_config): result.metric_value for result in card.data.eval_results}
    groups = {"vqa": 50.0, "grounding": 0.0, "IND": 25.0, "overall": 25.0}
    assert values == {("mini-MMEB", group): value for group, value in groups.items()}
    assert "| overall | 2 of 18 | 25.0 | 10.0 |" in card.text
    assert "DeepSpeed ZeRO-2 on 2 ranks" in card.text
    for secret in ("/secret", str(tmp_path), str(engine_runs_dir), str(Path.home())):
        assert secret not in card.content
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(card.text.split("```yaml\n")[1].split("```")[0])
    again = parse_arguments(["--config", str(recipe), "--output_dir", "x"])
    assert again.training.learning_rate == 1e-2
    assert yaml.safe_load(recipe.read_text())["model_name"] == "untrained"


def test_a_folder_that_is_not_the_checkpoint_does_not_appear(
    engine_runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(folder: Path) -> dict[str, LazyTensor]:
        weights = zero_weights(folder)
        name = "backbone.model.layers.1.mlp.down_proj.weight"
        return weights | {name: at_hand(weights[name].read() * 1.001)}

    monkeypatch.setattr(folder_module, "zero_weights", wrong)
    with pytest.raises(InputError, match=r"does not give the checkpoint's embeddings.*limit 1e-06"):
        export(find_checkpoint(engine_runs_dir / "zero2"), tmp_path / "out", check=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("zero2", {"merge_lora": True}, "nothing to merge"),
        ("zero2-lora", {"dtype": torch.bfloat16}, "use it with --merge_lora"),
        ("zero2", {"max_shard_size": "5 apples"}, "expected a size such as 5GB"),
        ("zero2", {"max_shard_size": "0GB"}, "expected a size such as 5GB"),
        ("zero2", {"scores": Path("nowhere")}, "python -m eval.mmeb"),
        ("zero2", {"base_model": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_refusals(name: str, options: dict[str, object], reason: str, engine_runs_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        export(find_checkpoint(engine_runs_dir / name), tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_left_alone(engine_runs_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="choose another folder or remove it"):
        export(find_checkpoint(engine_runs_dir / "zero2"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_no_room_there(engine_runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = find_checkpoint(engine_runs_dir / "zero2")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/out: cannot be written \(.*File exists"):
        export(checkpoint, tmp_path / "file" / "out")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vlm2vec.export.safetensors_files.save_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        export(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_rank_is_missing(engine_runs_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(find_checkpoint(engine_runs_dir / "zero2"), tmp_path / "torn")
    next((tmp_path / "torn" / "engine").glob("*rank_1_*optim_states.pt")).unlink()
    with pytest.raises(InputError, match="written by 2 ranks, but there are optimizer files of 1"):
        export(tmp_path / "torn", tmp_path / "out")
