"""The model compared with the reference: hidden states, embeddings, gradients, a few AdamW steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.rig import golden
from tests.rig.comparing import assert_close_relative
from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VModel

pytestmark = pytest.mark.numeric

CASES = golden.read("model_cases/cases.json")["cases"]
TRAIN = golden.read("train/train.json")
Batch = dict[str, Any]  # tensors, or None


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest, golden_model_dir: Path) -> Phi3VModel:
    loaded = Phi3VModel.from_pretrained(golden_model_dir, dtype=torch.float32, attn_implementation=request.param)
    assert loaded.config._attn_implementation == loaded.config.vision_config._attn_implementation == request.param
    ready: Phi3VModel = loaded.eval()
    return ready


def inputs_of(case: dict[str, Any], expected: dict[str, torch.Tensor], folder: Path) -> Batch:
    if case["source"] == "processor":
        return golden.batch_of(folder, case["texts"], case["images"], case["num_crops"], case.get("max_length"))
    ids = expected["input_ids"]
    lengths = torch.tensor(case["lengths"])
    sizes = [size for size in case["image_sizes_hw"] if size]
    pixels = golden.synthetic_pixels(case["salt"], max(len(sizes), 1), case["num_crops"], sizes)
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1])[None] < lengths[:, None]).long(),
        "pixel_values": pixels if sizes else None,
        "image_sizes": torch.tensor(sizes) if sizes else None,
    }


def pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(hidden[torch.arange(len(hidden)), mask.sum(1) - 1], dim=-1)


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_hidden_states(model: Phi3VModel, golden_model_dir: Path, case: dict[str, Any]) -> None:
    expected = golden.tensors(case["file"])
    batch = inputs_of(case, expected, golden_model_dir)
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    states: list[torch.Tensor] = []
    hooks = [model.model.layers[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))]
    hooks += [layer.register_forward_hook(lambda *args: states.append(args[-1])) for layer in model.model.layers]
    with torch.no_grad():
        hidden = model(**batch)
    for hook in hooks:
        hook.remove()
    at = expected["rows"], expected["positions"]
    assert (hidden[at] - expected["last_hidden_state"]).abs().max() < golden.HIDDEN_LIMIT
    assert (pool(hidden, batch["attention_mask"]) - expected["embedding"]).abs().max() < golden.EMBEDDING_LIMIT
    for index, state in enumerate(states):
        if f"hidden_states.{index}" in expected:
            assert (state[at] - expected[f"hidden_states.{index}"]).abs().max() < golden.HIDDEN_LIMIT


def contrastive_loss(model: Phi3VModel, batches: list[Batch]) -> torch.Tensor:
    queries, targets = (pool(model(**batch), batch["attention_mask"]) for batch in batches)
    scores = queries @ targets.T / TRAIN["temperature"]
    return nn.functional.cross_entropy(scores, torch.arange(len(scores)))


def train_batches(folder: Path) -> list[Batch]:
    sides = (TRAIN["query"], TRAIN["target"])
    return [golden.batch_of(folder, side["texts"], side["images"], side["num_crops"]) for side in sides]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(golden_model_dir: Path, checkpointing: bool) -> None:
    model = Phi3VModel.from_pretrained(golden_model_dir, dtype=torch.float32).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    loss = contrastive_loss(model, train_batches(golden_model_dir))
    loss.backward()
    assert abs(loss.item() - TRAIN["loss"]) < golden.LOSS_LIMIT
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = golden.tensors("train/gradients.safetensors")
    for name in (name.removeprefix("grad.") for name in expected if name.startswith("grad.")):
        reference = expected[f"grad.{name}"]
        assert (gradients[name] - reference).abs().max() < golden.GRADIENT_LIMIT * reference.abs().max(), name
    for name, norm in TRAIN["grad_norms"].items():
        if norm is None:
            assert gradients.get(name) is None, name
        elif not name.endswith("k_proj.bias"):  # zero in exact arithmetic
            assert gradients[name].norm().item() == pytest.approx(norm, rel=golden.GRADIENT_LIMIT), name
    assert gradients.keys() == TRAIN["grad_norms"].keys() - {"lm_head.weight"}


def test_four_steps_of_adamw(golden_model_dir: Path) -> None:
    model = Phi3VModel.from_pretrained(golden_model_dir, dtype=torch.float32).train()
    batches = train_batches(golden_model_dir)
    settings = {key: value for key, value in TRAIN["adamw"].items() if key != "losses_before_each_step"}
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    for expected in TRAIN["adamw"]["losses_before_each_step"]:
        loss = contrastive_loss(model, batches)
        assert abs(loss.item() - expected) < golden.LOSS_LIMIT
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def mixed_batch(folder: Path) -> Batch:
    case = next(case for case in CASES if case["case"] == "mixed_nc4")
    return golden.batch_of(folder, case["texts"], case["images"], case["num_crops"])


def padded_pixels(batch: Batch, num_crops: int) -> torch.Tensor:
    counts = [1 + (height // 336) * (width // 336) for height, width in batch["image_sizes"].tolist()]
    padded = torch.zeros(len(counts), num_crops + 1, 3, 336, 336)
    for row, crops in zip(padded, torch.split(batch["pixel_values"], counts), strict=True):
        row[: len(crops)] = crops
    return padded


def test_zero_crops_change_nothing_and_cost_nothing(golden_model_dir: Path) -> None:
    model = Phi3VModel.from_pretrained(golden_model_dir, dtype=torch.float32).eval()
    batch = mixed_batch(golden_model_dir)
    results, costs = [], []
    for num_crops in (None, 4, 16):
        given = batch if num_crops is None else {**batch, "pixel_values": padded_pixels(batch, num_crops)}
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            results.append(model(**given))
        costs.append(counter.get_total_flops())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert costs[0] == costs[1] == costs[2]


def test_padding_does_not_reach_real_tokens(golden_model_dir: Path) -> None:
    model = Phi3VModel.from_pretrained(golden_model_dir, dtype=torch.float32).eval()
    batch = golden.batch_of(golden_model_dir, ["A cat and a dog", "the quick brown fox jumps"], [None, None], 1)
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 7)}
    with torch.no_grad():
        first, second = (model(**given)[batch["attention_mask"] == 1] for given in (batch, other))
    assert torch.equal(first, second)


def test_dummy_image_is_weightless(golden_model_dir: Path) -> None:
    model = Phi3VModel.from_pretrained(golden_model_dir, dtype=torch.float32).train()
    batch = golden.batch_of(golden_model_dir, ["A cat and a dog"], [None], 1)
    plain, dummy = model(**batch), model(**batch, dummy_image=True)
    assert torch.equal(plain, dummy)
    dummy.square().sum().backward()
    vision = {name: p.grad for name, p in model.named_parameters() if "vision_embed_tokens" in name and p.requires_grad}
    assert all(gradient is not None and not gradient.any() for gradient in vision.values())


def test_rope_chosen_by_the_row(golden_model_dir: Path) -> None:
    """A short row beside one of more than 4,096 tokens: its own length decides, or the batch's as in the original."""
    model = Phi3VModel.from_pretrained(golden_model_dir, dtype=torch.float32).eval()
    ids = torch.randint(3, 500, (2, 4100), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 20:] = 0
    with torch.no_grad():
        alone, long_alone = model(ids[:1, :20])[0], model(ids[1:])[0]
        by_row = model(ids, mask)
        by_width = model(ids, mask, **model.original_arguments())
    assert_close_relative(by_row[0, :20], alone, 1e-5)
    assert_close_relative(by_row[1], long_alone, 1e-5)
    assert (by_width[0, :20] - alone).abs().max() > 0.1


def test_bf16_keeps_rotary_frequencies(golden_model_dir: Path) -> None:
    """A cast of the frequencies would bring the worst cosine down to 0.93."""
    case = next(case for case in CASES if case["case"] == "synthetic_2x2_mixed")
    expected = golden.tensors(case["file"])
    batch = inputs_of(case, expected, golden_model_dir)
    loaded = Phi3VModel.from_pretrained(golden_model_dir, dtype=torch.bfloat16).eval()
    cast = Phi3VModel.from_pretrained(golden_model_dir, dtype=torch.float32).to(torch.bfloat16).eval()
    for model in (loaded, cast):
        with torch.no_grad():
            hidden = model(**batch)
        assert hidden.dtype == torch.bfloat16
        similarity = nn.functional.cosine_similarity(
            pool(hidden.float(), batch["attention_mask"]), expected["embedding"], dim=-1
        )
        assert similarity.min() > 0.998


def test_full_size_names_and_shapes() -> None:
    """Exactly the published checkpoint's 592 tensors, but for the unused lm_head."""
    written = json.loads((golden.ROOT / "phi35v_full_size_config.json").read_text())
    config = Phi3VConfig.from_dict(written)
    with torch.device("meta"):
        model = Phi3VModel(config)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    expected: dict[str, list[int]] = {}
    for name, shape in json.loads((golden.ROOT / "phi35v_full_size_shapes.json").read_text()).items():
        layers = range(24 if "vision_model" in name else 32) if ".N." in name else (0,)
        expected |= {name.replace(".N.", f".{layer}."): shape for layer in layers}
    assert len(expected) == 592
    assert shapes == {name: shape for name, shape in expected.items() if name != "lm_head.weight"}


def forward_flops(config: Phi3VConfig, num_crops: int, length: int) -> int:
    """By hand: two for each multiplication, linear layers and attention of what has to be run."""
    width, vision = config.hidden_size, config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    patch = 3 * vision.patch_size**2 * vision.hidden_size * (tokens - 1)
    linear = tokens * (4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size)
    attention = 2 * tokens**2 * vision.hidden_size
    tower = num_crops * (patch + (vision.num_hidden_layers - 1) * (linear + attention))
    image_tokens = num_crops * config.view_grid**2 + 1 + 3 * config.view_grid  # 2 x 2 local crops
    projection = image_tokens * (4 * vision.hidden_size * width + width**2)
    decoder = length * (4 * width**2 + 3 * width * config.intermediate_size) + 2 * length**2 * width
    flops: int = 2 * (tower + projection + config.num_hidden_layers * decoder)
    return flops


def test_nothing_is_computed_that_the_embedding_cannot_see(golden_model_dir: Path) -> None:
    """No lm_head, no last CLIP layer, no zero crops: the count is the hand-made sum (full attention, as counted)."""
    # The counter does not know the CPU's fused attention kernel; eager attention is plain products.
    model = Phi3VModel.from_pretrained(golden_model_dir, dtype=torch.float32, attn_implementation="eager").eval()
    batch = golden.batch_of(golden_model_dir, ["<|image_1|> Represent."], ["images/square.png"], 4)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**batch)
    assert counter.get_total_flops() == forward_flops(model.config, 5, batch["input_ids"].shape[1])
