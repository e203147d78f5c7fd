"""Our DoRA layers compared with PEFT's: the same results, parameters and files, with less work."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vlm2vec.dora import DoraLinear, WeightNorm, install_dora, kept_norms
from vlm2vec.errors import InputError

WIDTHS = (48, 80, 32)
TOKENS = 3 * 7
BF16_STEP = 2.0**-8


class TwoLinears(nn.Module):
    """One layer with a bias and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTHS[0], WIDTHS[1])
        self.second = nn.Linear(WIDTHS[1], WIDTHS[2], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(nn.functional.gelu(self.first(x)))
        return y


def adapted_model(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> PeftModel:
    """PEFT's own layers, with an adapter that changes the result; the adapter is float32."""
    torch.manual_seed(0)
    settings = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, use_dora=True, target_modules=["first", "second"])
    model = get_peft_model(TwoLinears().to(dtype), settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
            if "magnitude" in name:
                parameter.mul_(1.1)
    return model


def ours(model: PeftModel, dropout_on: str = "input") -> PeftModel:
    """The same adapter in our layers."""
    copied = copy.deepcopy(model)
    install_dora(copied, dropout_on)
    assert sum(isinstance(each, DoraLinear) for each in copied.modules()) == 2
    return copied


def step(model: PeftModel, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The result and all gradients of one call, with a fixed input, seed and gradient."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 7, WIDTHS[0], generator=generator).to(dtype).requires_grad_()
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        result = model(x)
    result.backward(torch.randn(result.shape, generator=generator).to(result.dtype))
    assert x.grad is not None
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {"result": result.detach(), "input": x.grad, **gradients}


def is_equal(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).detach().norm() < 1e-6 * expected.detach().norm())


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    assert len(expected) == 2 + 2 * 3
    return max(
        float((found[name].double() - each.double()).norm() / each.double().norm()) for name, each in expected.items()
    )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("keeps", [False, True])
def test_result_and_gradients_are_pefts(dropout: float, keeps: bool) -> None:
    reference = adapted_model(dropout).train()
    mine = ours(reference).train()
    if keeps:
        with kept_norms(mine):
            found = step(mine)
    else:
        found = step(mine)
    assert largest_difference(found, step(reference)) < 1e-6


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_bf16_is_as_close_to_float32_as_pefts(dropout: float) -> None:
    """Both round; ours must not be further from the exact result than PEFT's is, but for a little luck."""
    exact = step(adapted_model(dropout).train())
    reference = adapted_model(dropout, torch.bfloat16).train()
    theirs, mine = step(reference, torch.bfloat16), step(ours(reference).train(), torch.bfloat16)
    assert mine["result"].dtype == torch.bfloat16
    assert largest_difference(mine, exact) < 1.3 * largest_difference(theirs, exact) < 4 * BF16_STEP


@pytest.mark.parametrize("dropout_on", ["input", "adapter"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero3_rounds_as_the_other_stages(dtype: torch.dtype, dropout: float, dropout_on: str) -> None:
    """Module by module, as under ZeRO-3, the same sums in the same order: far below a step of bfloat16."""
    whole = ours(adapted_model(dropout, dtype), dropout_on).train()
    by_modules = copy.deepcopy(whole)
    for layer in by_modules.modules():
        if isinstance(layer, DoraLinear):
            layer.base_layer.weight.ds_status = "AVAILABLE"
    assert largest_difference(step(by_modules, dtype), step(whole, dtype)) < 1e-6


def test_a_small_change_of_a_magnitude_reaches_bf16_results() -> None:
    """One part in a thousand is below bfloat16's step: the scale must be applied in float32."""
    model = ours(adapted_model(dtype=torch.bfloat16)).eval()
    x = torch.randn(64, WIDTHS[0], generator=torch.Generator().manual_seed(3)).bfloat16()
    layer = model.base_model.model.first
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = layer(x).float()
        layer.lora_magnitude_vector["default"].weight *= 1.001
        after = layer(x).float()
    assert 0 < float((after - before).abs().mean() / before.abs().mean()) < BF16_STEP


def test_norms_are_float32_under_autocast() -> None:
    model = ours(adapted_model(dtype=torch.bfloat16)).eval()
    layer = model.base_model.model.first
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    expected = (layer.base_layer.weight.double() + 2.0 * b @ a).norm(dim=1)
    with torch.no_grad(), kept_norms(model), torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, WIDTHS[0]).bfloat16())
        assert is_equal(layer.kept_norm.value.double(), expected)


@pytest.mark.parametrize("merged", [False, True])
def test_adapters_move_between_peft_and_ours(tmp_path: Path, merged: bool) -> None:
    mine = ours(adapted_model())
    mine.save_pretrained(tmp_path)
    torch.manual_seed(0)
    theirs = PeftModel.from_pretrained(TwoLinears(), tmp_path)
    x = torch.randn(5, WIDTHS[0])
    expected = mine.eval()(x)
    if merged:
        assert is_equal(mine.merge_and_unload()(x), expected)
        theirs = theirs.merge_and_unload()
    assert is_equal(theirs.eval()(x), expected)


def test_a_disabled_adapter_is_the_base() -> None:
    reference = adapted_model()
    mine = ours(reference).eval()
    x = torch.randn(5, WIDTHS[0])
    with mine.disable_adapter():
        assert torch.equal(mine(x), reference.base_model.model.second.base_layer(gelu_of_first(reference, x)))


def gelu_of_first(model: PeftModel, x: Tensor) -> Tensor:
    return nn.functional.gelu(model.base_model.model.first.base_layer(x))


def test_dropout_on_the_adapter_alone() -> None:
    """`m / ||.|| (W x + s B A d(x)) + b` with the same mask; the frozen product sees the whole input."""
    model = ours(adapted_model(0.3), "adapter").train()
    layer = model.base_model.model.first
    x = torch.randn(5, WIDTHS[0])
    torch.manual_seed(2)
    found = layer(x)
    torch.manual_seed(2)
    dropped = nn.functional.dropout(x, 0.3)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weight, bias = layer.base_layer.weight, layer.base_layer.bias
    norm = (weight + 2.0 * b @ a).norm(dim=1)
    scale = layer.lora_magnitude_vector["default"].weight / norm
    expected = scale * (x @ weight.T + 2.0 * dropped @ a.T @ b.T) + bias
    assert is_equal(found, expected)
    with pytest.raises(InputError, match="'elsewhere': expected one of input, adapter"):
        install_dora(adapted_model(), "elsewhere")


def frozen_products(model: PeftModel) -> float:
    """FLOPs of a forward pass, in frozen products of the whole model."""
    frozen = 2 * TOKENS * (WIDTHS[0] * WIDTHS[1] + WIDTHS[1] * WIDTHS[2])
    x = torch.randn(TOKENS, WIDTHS[0])
    with torch.no_grad(), kept_norms(model):
        model(x)  # the norms
        with FlopCounterMode(display=False) as counter:
            model(x)
    adapter = 2 * TOKENS * 4 * (WIDTHS[0] + 2 * WIDTHS[1] + WIDTHS[2])
    return float((counter.get_total_flops() - adapter) / frozen)


@pytest.mark.parametrize(
    ("dropout", "dropout_on", "count"), [(0.0, "input", 1), (0.3, "input", 2), (0.3, "adapter", 1)]
)
def test_no_more_products_than_needed(dropout: float, dropout_on: str, count: int) -> None:
    assert frozen_products(ours(adapted_model(dropout), dropout_on).train()) == count


def test_a_kept_norm_lives_for_its_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that changed between two blocks, or without one, are never missed."""
    computed: list[int] = []
    add_b = WeightNorm.add_b
    monkeypatch.setattr(WeightNorm, "add_b", lambda self, weight: (computed.append(1), add_b(self, weight))[1])
    reference = adapted_model()
    model = ours(reference).eval()
    x = torch.randn(5, WIDTHS[0])

    def change() -> None:
        for each in (model, reference):
            each.base_model.model.first.lora_B["default"].weight.data.mul_(1.5)  # as an optimizer's copy does: unseen

    with torch.no_grad():
        for block in (lambda: kept_norms(model), lambda: kept_norms(model)):
            with block():
                for _ in range(3):
                    assert is_equal(model(x), reference(x))
            change()
        assert len(computed) == 2 * 2
        for _ in range(2):
            change()
            assert is_equal(model(x), reference(x))
        assert len(computed) == 2 * 2 + 2 * 2


def test_plain_lora_layers_stay_pefts() -> None:
    model = get_peft_model(TwoLinears(), LoraConfig(r=4, target_modules=["first"]))
    install_dora(model)
    assert not any(isinstance(each, DoraLinear) for each in model.modules())
