"""`DoraLinear`, which replaces PEFT's DoRA layer, and its installation in a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from vlm2vec.choices import DROPOUT_PLACES
from vlm2vec.dora.modules import FactorA, FactorB, FrozenLinear, Magnitude, forward_by_modules
from vlm2vec.dora.norm import WeightNorm
from vlm2vec.dora.product import Constants, DoraProduct
from vlm2vec.errors import InputError


class DoraLinear(PeftLinear):
    """A linear layer with a DoRA adapter: `m / ||W + s B A|| * (W x + s B A x) + b`.

    With dropout on the input, as in PEFT, the frozen product occurs twice:
    `W x + b + (m / ||.|| - 1) W d(x) + m / ||.|| s B A d(x)`. With dropout on the adapter's input alone the result is
    `m / ||.|| (W x + s B A d(x)) + b`.

    Made from PEFT's layer by `install`, not by a constructor.
    """

    drops_adapter_only: bool
    keeps_norm: bool
    kept_norm: WeightNorm | None
    kept_constants: Constants | None
    backend: str | None = None  # torch.compile's backend for the elementwise operators; None: not compiled

    @classmethod
    def install(cls, layer: PeftLinear, dropout_on: str) -> None:
        """Turns PEFT's layer into this one: its methods change, parameters and their names stay."""
        (name,) = layer.lora_A
        layer.__class__ = cls
        layer.base_layer.__class__ = FrozenLinear
        layer.lora_A[name].__class__ = FactorA
        layer.lora_B[name].__class__ = FactorB
        layer.lora_magnitude_vector[name].__class__ = Magnitude
        layer.drops_adapter_only = dropout_on == "adapter"
        layer.keep_norm(False)

    def keep_norm(self, keeps: bool) -> None:
        """Forgets what earlier calls computed from the weights; with `keeps`, later calls keep and reuse it."""
        self.keeps_norm, self.kept_norm, self.kept_constants = keeps, None, None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Maps x (..., in) to (..., out), in the dtype of the frozen product."""
        if self.disable_adapters or self.merged:
            plain: Tensor = super().forward(x, *args, **kwargs)
            return plain
        (name,) = self.lora_A
        weight = self.base_layer.weight
        leading = x.shape[:-1]
        x = x.to(_product_dtype(x.device, weight)).flatten(0, -2)
        dropout = self.lora_dropout[name]
        is_dropped = self.training and isinstance(dropout, nn.Dropout) and dropout.p > 0
        dropped = dropout(x) if is_dropped else None
        if hasattr(weight, "ds_status"):  # set by ZeRO-3, where parameters are complete only while their module runs
            norm = self.kept_norm or WeightNorm(self.scaling[name])
            result = forward_by_modules(self, name, x, dropped, norm, self.backend)
            if self.keeps_norm:
                self.kept_norm = norm
        else:
            constants = self._constants(name, x.dtype)
            result = DoraProduct.apply(  # type: ignore[no-untyped-call]
                x,
                dropped,
                self.drops_adapter_only,
                self.lora_A[name].weight,
                self.lora_B[name].weight,
                self.lora_magnitude_vector[name].weight,
                constants,
            )
        return result.view(*leading, -1)

    def _constants(self, name: str, dtype: torch.dtype) -> Constants:
        """The constants of the last call if they are kept, else new ones."""
        kept = self.kept_constants
        if kept is not None and kept.a.dtype == dtype and kept.backend == self.backend:
            return kept
        norm = self.kept_norm or WeightNorm(self.scaling[name])
        constants = Constants.of(self, name, norm, dtype)
        if self.keeps_norm:
            self.kept_norm, self.kept_constants = norm, constants
        return constants


def _product_dtype(device: torch.device, weight: Tensor) -> torch.dtype:
    """Dtype for the input: autocast's, or else the frozen weight's, to cast once instead of in each product."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return weight.dtype


def install_dora(adapted: nn.Module, dropout_on: str = "input") -> None:
    """Turns PEFT's DoRA layers in a model into `DoraLinear`; plain LoRA layers stay as they are.

    Args:
        adapted: A PEFT model with one adapter.
        dropout_on: "input" applies dropout to the input of the frozen product too, as PEFT and the original do;
            "adapter" applies it only to the adapter's input, which saves a frozen product in every call.

    Raises:
        InputError: `dropout_on` is unknown.
    """
    if dropout_on not in DROPOUT_PLACES:
        raise InputError(f"lora_dropout_on {dropout_on!r}: expected one of {', '.join(DROPOUT_PLACES)}")
    layers: list[Any] = [each for each in adapted.modules() if type(each) is PeftLinear]
    for layer in layers:
        if all(layer.use_dora.get(name, False) for name in layer.lora_A) and type(layer.base_layer) is nn.Linear:
            DoraLinear.install(layer, dropout_on)


@contextmanager
def kept_norms(module: nn.Module) -> Iterator[None]:
    """Context in which every DoRA layer computes its norm only once. No weight may change in it, as in a step's passes.

    Outside, every call computes the norm, so that a changed weight is never missed.
    """
    layers = [each for each in module.modules() if isinstance(each, DoraLinear)]
    for layer in layers:
        layer.keep_norm(True)
    try:
        yield
    finally:
        for layer in layers:
            layer.keep_norm(False)
