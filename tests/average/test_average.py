"""Averaging several model folders: the weights, the files in the result, loading it, and refused inputs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from tests.rig.comparing import assert_close_relative
from vlm2vec import VLM2Vec
from vlm2vec.average import __main__ as program
from vlm2vec.average import average, mean
from vlm2vec.choices import LoraSettings
from vlm2vec.errors import InputError, run_program
from vlm2vec.model_folder.adapter_files import ADAPTER_CONFIG, WRITTEN_WEIGHTS
from vlm2vec.model_folder.settings import SETTINGS_FILE
from vlm2vec.model_folder.weights import LazyTensor, at_hand, folder_weights
from vlm2vec.sentence_transformer import VLM2VecModule

pytestmark = pytest.mark.numeric

WEIGHTS = "model.safetensors"
TEXTS = ["a cat", "seven of nine", "Represent the given image."]
SHARES = [0.5, 0.3, 0.2]
# What rounding a float64 sum once may change, relative to it.
HALF_ULP, HALF_ULP_BF16 = 2**-24 * (1 + 1e-6), 2**-8 * (1 + 1e-6)


@pytest.fixture(scope="module")
def models(golden_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of one base: the reference's, and two with other numbers."""
    folders = []
    for seed in range(3):
        folder = tmp_path_factory.mktemp("models") / f"model{seed}"
        VLM2Vec.from_pretrained(golden_model_dir, dtype=torch.float32).save_pretrained(folder)
        folders.append(changed(folder, WEIGHTS, seed))
    return folders


@pytest.fixture(scope="module", params=[False, True], ids=["lora", "dora"])
def adapters(request: pytest.FixtureRequest, golden_model_dir: Path, tmp_path_factory: Any) -> list[Path]:
    """Three adapters of one base, whose B is not zero; one batch of layers has a rank of its own."""
    folders = []
    for seed in range(3):
        folder = tmp_path_factory.mktemp("adapters") / f"adapter{seed}"
        encoder = VLM2Vec.from_pretrained(golden_model_dir, dtype=torch.float32)
        encoder.add_lora(LoraSettings(r=4, alpha=6, seed=seed, use_dora=request.param))
        encoder.save_pretrained(folder)
        folders.append(changed(folder, WRITTEN_WEIGHTS, seed))
    return folders


def changed(folder: Path, name: str, seed: int, **damage: torch.Tensor) -> Path:
    """The folder, with other numbers in its tensors, and some replaced."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / name)
    for key, tensor in sorted(tensors.items()):
        noise = torch.randn(tensor.shape, generator=generator) * 0.02
        tensors[key] = (tensor.float() + noise).to(tensor.dtype)
    save_file({**tensors, **damage}, folder / name, metadata={"format": "pt"})
    return folder


def copied(folder: Path, to: Path, file: str, **values: Any) -> Path:
    """A copy of a folder with fields of a JSON file changed."""
    shutil.copytree(folder, to)
    (to / file).write_text(json.dumps(json.loads((to / file).read_text()) | values))
    return to


def strings(folders: list[Path]) -> list[str]:
    return [str(folder) for folder in folders]


def naive(folders: list[Path], name: str, shares: list[float]) -> dict[str, torch.Tensor]:
    files = [load_file(folder / name) for folder in folders]
    return {
        key: torch.stack([share * file[key].double() for share, file in zip(shares, files, strict=True)]).sum(0)
        for key in files[0]
    }


def test_models(models: list[Path], tmp_path: Path) -> None:
    found = average(strings(models), tmp_path / "out", [5, 3, 2], max_shard_size="200KB")
    assert found == pytest.approx(SHARES, rel=1e-15)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    written = {name: each.read() for name, each in folder_weights(tmp_path / "out").items()}
    expected = naive(models, WEIGHTS, SHARES)
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert written[name].dtype == torch.float32
        torch.testing.assert_close(written[name].double(), tensor, rtol=HALF_ULP, atol=1e-15)
    vectors = [VLM2Vec.from_pretrained(each).encode(texts=TEXTS) for each in (tmp_path / "out", *models)]
    assert all((vectors[0] - other).abs().max() > 1e-3 for other in vectors[1:])
    module = VLM2VecModule.load(str(tmp_path / "out"))
    assert torch.equal(module.encoder.encode(texts=TEXTS), vectors[0])


def test_the_dtype_stays_and_the_sum_is_not_rounded_on_the_way(models: list[Path], tmp_path: Path) -> None:
    halves = []
    for model in models:
        half = shutil.copytree(model, tmp_path / model.name)
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(model / WEIGHTS).items()}
        save_file(tensors, half / WEIGHTS, metadata={"format": "pt"})
        halves.append(half)
    average(strings(halves), tmp_path / "out")
    expected = naive(halves, WEIGHTS, [1 / 3] * 3)
    for name, tensor in load_file(tmp_path / "out" / WEIGHTS).items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.double(), expected[name], rtol=HALF_ULP_BF16, atol=1e-15)
    with pytest.raises(InputError, match=r"the dtype of .* is torch.bfloat16 here, torch.float32 there.*--dtype"):
        average([str(models[0]), str(halves[1])], tmp_path / "mixed")


def test_adapters_exactly(adapters: list[Path], tmp_path: Path) -> None:
    """What the average adds to the base is the mean of what the adapters add, with DoRA before the norm."""
    average(strings(adapters), tmp_path / "out", SHARES)
    found = load_file(tmp_path / "out" / WRITTEN_WEIGHTS)
    files = [load_file(folder / WRITTEN_WEIGHTS) for folder in adapters]
    config = json.loads((tmp_path / "out" / ADAPTER_CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (12, 18)
    means = naive(adapters, WRITTEN_WEIGHTS, SHARES)
    for name, tensor in found.items():
        if ".lora_A." in name:
            other = name.replace(".lora_A.", ".lora_B.")
            products = [s * f[other].double() @ f[name].double() for s, f in zip(SHARES, files, strict=True)]
            assert_close_relative(found[other].double() @ tensor.double(), torch.stack(products).sum(0), 1e-6)
        elif ".lora_B." not in name:
            torch.testing.assert_close(tensor.double(), means[name], rtol=HALF_ULP, atol=1e-15)
    encoder = VLM2Vec.from_pretrained(tmp_path / "out")
    vectors = encoder.encode(texts=TEXTS)
    encoder.merge_lora()
    assert_close_relative(encoder.encode(texts=TEXTS), vectors, 1e-5)
    assert torch.equal(VLM2VecModule.load(str(tmp_path / "out")).encoder.encode(texts=TEXTS), vectors)


def test_without_dora_that_is_the_mean_of_the_merged_models(
    adapters: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    is_dora = "dora" in request.node.callspec.id
    merged = []
    for folder in adapters:
        encoder = VLM2Vec.from_pretrained(folder, dtype=torch.float32)
        encoder.merge_lora()
        encoder.save_pretrained(tmp_path / folder.name)
        merged.append(tmp_path / folder.name)
    average(strings(merged), tmp_path / "model", SHARES)
    average(strings(adapters), tmp_path / "adapter", SHARES)
    average(strings(adapters), tmp_path / "factors", SHARES, factors="mean")
    expected, exact, factors = (
        VLM2Vec.from_pretrained(tmp_path / name, dtype=torch.float32).encode(texts=TEXTS)
        for name in ("model", "adapter", "factors")
    )
    difference = float((exact - expected).abs().max())
    assert difference > 1e-5 if is_dora else difference < 1e-5  # the norm of DoRA is not linear
    assert (factors - expected).abs().max() > 1e-4


def test_the_mean_of_the_factors(adapters: list[Path], tmp_path: Path) -> None:
    average(strings(adapters), tmp_path / "out", SHARES, factors="mean")
    expected = naive(adapters, WRITTEN_WEIGHTS, SHARES)
    for name, tensor in load_file(tmp_path / "out" / WRITTEN_WEIGHTS).items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=HALF_ULP, atol=1e-15)
    config = json.loads((tmp_path / "out" / ADAPTER_CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 6)


def test_the_program_card_and_bytes(
    adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        words = ["vlm2vec.average", *strings(adapters), str(tmp_path / name / "soup"), "--weights", "0.5", "0.3", "0.2"]
        monkeypatch.setattr(sys, "argv", words)
        assert run_program(program.main) == 0
    assert f"0.5 x {adapters[0]} + 0.3 x {adapters[1]}" in capsys.readouterr().out
    one, two = (
        {file.name: file.read_bytes() for file in sorted((tmp_path / name / "soup").iterdir())}
        for name in ("one", "two")
    )
    assert one == two
    card = ModelCard.load(tmp_path / "one" / "soup" / "README.md")
    assert "| adapter1 | 0.3 |" in card.text
    assert "the rank is the sum of their ranks" in card.text
    assert str(tmp_path) not in card.content
    assert str(adapters[0].parent) not in card.content


def test_one_tensor_of_one_source_at_a_time(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors are read when their file is written, and in its order: nothing else is held."""
    read: list[str] = []

    def watched(folder: Path) -> dict[str, LazyTensor]:
        def reading(name: str, tensor: LazyTensor) -> Callable[[], torch.Tensor]:
            return lambda: (read.append(name), tensor.read())[1]

        return {name: LazyTensor(each.shape, reading(name, each)) for name, each in folder_weights(folder).items()}

    monkeypatch.setattr("vlm2vec.average.sources.folder_weights", watched)
    average(strings(models), tmp_path / "out", max_shard_size="200KB")
    num_tensors = len(load_file(models[0] / WEIGHTS))
    headers, written = read[: 3 * num_tensors], read[3 * num_tensors :]
    assert len(headers) == len(written) == 3 * num_tensors
    assert written == [name for name in dict.fromkeys(written) for _ in range(3)]


REFUSED: dict[str, tuple[Callable[[list[Path], Path], Any], str]] = {
    "one": (lambda m, t: average(strings(m[:1]), t / "out"), "give two or more folders"),
    "weights": (
        lambda m, t: average(strings(m), t / "out", [1, 2]),
        "--weights: 2 weights for 3 folders; give one per folder",
    ),
    "zero": (
        lambda m, t: average(strings(m), t / "out", [1, 0, 1]),
        "0 is not a finite number above 0; leave out a folder",
    ),
    "nan": (lambda m, t: average(strings(m), t / "out", [1, float("nan"), 1]), "nan is not a finite number above 0"),
    "twice": (lambda m, t: average(strings([m[0], m[0]]), t / "out"), "given twice"),
    "lora": (
        lambda m, t: average(strings(m), t / "out", factors="exact"),
        "--lora has no effect: the folders are whole models",
    ),
    "size": (lambda m, t: average(strings(m), t / "out", max_shard_size="5 apples"), "expected a size such as 5GB"),
    "setting": (
        lambda m, t: average(strings([m[0], copied(m[1], t / "x", SETTINGS_FILE, normalize=False)]), t / "out"),
        "vlm2vec_config.json: normalize is False here, True there",
    ),
    "base": (
        lambda m, t: average(
            strings([copied(m[i], t / f"x{i}", SETTINGS_FILE, base_fingerprint=f"{i}" * 32) for i in (0, 1)]), t / "out"
        ),
        "the fingerprint of the base weights is 11111111 here, 00000000 there.*--allow_other_base",
    ),
    "config": (
        lambda m, t: average(strings([m[0], copied(m[1], t / "x", "config.json", rms_norm_eps=0.5)]), t / "out"),
        "config.json: rms_norm_eps is 0.5 here",
    ),
    "not finite": (
        lambda m, t: average(
            strings(
                [
                    m[0],
                    changed(
                        shutil.copytree(m[1], t / "x"),
                        WEIGHTS,
                        1,
                        **{"model.norm.weight": torch.full((64,), torch.inf)},
                    ),
                ]
            ),
            t / "out",
        ),
        "model.norm.weight has values that are not finite",
    ),
    "missing": (lambda m, t: average([str(m[0]), str(t / "nowhere")], t / "out"), "nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_of_models(case: str, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run, reason = REFUSED[case]
    with pytest.raises(InputError, match=reason):
        run(models, tmp_path)
    assert not any(path.name.startswith((".tmp", "out")) for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "values", "reason"),
    [
        (ADAPTER_CONFIG, {"lora_alpha": 8}, "adapter_config.json: lora_alpha is 8 here, 6 there"),
        (ADAPTER_CONFIG, {"use_rslora": True}, "adapter_config.json: use_rslora is true here, false there"),
        (ADAPTER_CONFIG, {"target_modules": ["o_proj"]}, "adapter_config.json: target_modules is"),
        (SETTINGS_FILE, {"base_fingerprint": "0" * 32}, "the fingerprint of the base weights is 00000000 here"),
        (SETTINGS_FILE, {"max_len": 7}, "vlm2vec_config.json: max_len is 7 here"),
    ],
)
def test_refusals_of_adapters(
    file: str, values: dict[str, Any], reason: str, adapters: list[Path], tmp_path: Path
) -> None:
    other = copied(adapters[1], tmp_path / "other", file, **values)
    with pytest.raises(InputError, match=reason):
        average([str(adapters[0]), str(other)], tmp_path / "out")


def test_other_refusals_of_adapters(adapters: list[Path], models: list[Path], tmp_path: Path) -> None:
    pair = strings(adapters[:2])
    with pytest.raises(InputError, match=r"is an adapter, .* a whole model; .*--merge_lora"):
        average([str(adapters[0]), str(models[0])], tmp_path / "out")
    with pytest.raises(InputError, match="--max_shard_size has no effect: an adapter is one file"):
        average(pair, tmp_path / "out", max_shard_size="1GB")
    tensors = load_file(adapters[1] / WRITTEN_WEIGHTS)
    lacking = shutil.copytree(adapters[1], tmp_path / "lacking")
    save_file(dict(sorted(tensors.items())[1:]), lacking / WRITTEN_WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"it has no tensor {min(tensors)}"):
        average([pair[0], str(lacking)], tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="choose another folder or remove it"):
        average(pair, tmp_path / "out")


def test_a_different_base_if_allowed(models: list[Path], tmp_path: Path) -> None:
    bases = [copied(models[i], tmp_path / str(i), SETTINGS_FILE, base_fingerprint=f"{i}" * 32) for i in (0, 1)]
    average(strings(bases), tmp_path / "out", allow_other_base=True)
    assert json.loads((tmp_path / "out" / SETTINGS_FILE).read_text())["base_fingerprint"] is None


def test_scaling_with_patterns_and_rslora() -> None:
    from vlm2vec.average.folder import _scaled

    config = {"r": 8, "lora_alpha": 16, "rank_pattern": {"a": 4}, "alpha_pattern": {"a": 3}}
    expected = {"r": 32, "lora_alpha": 64, "rank_pattern": {"a": 16}, "alpha_pattern": {"a": 12}}
    assert _scaled(config, 4) == expected
    rooted = {"lora_alpha": 32, "alpha_pattern": {"a": 6}}
    assert _scaled({**config, "use_rslora": True}, 4) == {**expected, **rooted, "use_rslora": True}
    assert _scaled(config, 1) == config


def test_whole_numbers_have_no_mean(models: list[Path]) -> None:
    parts = [mean._Part(f"file{i}", "steps", at_hand(torch.tensor([i]))) for i in (3, 3, 4)]
    assert mean._mean(parts[:2], [0.5, 0.5]) == 3
    with pytest.raises(InputError, match="file4: steps differs from file3's"):
        mean._mean(parts, [0.3, 0.3, 0.4])
