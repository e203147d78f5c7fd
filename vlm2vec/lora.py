"""LoRA and DoRA on the backbone, through PEFT: new adapters, published ones, and the checks that PEFT leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from vlm2vec.adapter_schema import check_adapter_config
from vlm2vec.errors import InputError
from vlm2vec.phi3_v import Phi3VModel
from vlm2vec.phi3_v.checkpoint import tensor_shapes

# The language model's linears and the attention of the vision tower: the original's `--lora_target_modules`.
DEFAULT_TARGETS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "k_proj", "q_proj", "out_proj", "v_proj")
ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# CLIP's last layer is never run: an adapter there would be saved without ever having been trained.
_UNUSED_LAYER = r".*\.vision_model\.encoder\.layers\.{last}\..*"
# Both draw A at random and set B to zero: normal with standard deviation 1 / r, or PEFT's own uniform default.
_INITS: dict[str, str | bool] = {"gaussian": "gaussian", "kaiming": True}


@dataclass(frozen=True)
class LoraSettings:
    """A new adapter (https://arxiv.org/abs/2106.09685, DoRA: https://arxiv.org/abs/2402.09353).

    The defaults are the original's.

    Attributes:
        r: rank.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapter's input.
        target_modules: names of the linear layers to adapt; each must occur.
        use_dora: learn the weights' magnitudes too.
        init: "gaussian" or "kaiming", how A is drawn.
        seed: decides the initial adapter, so that every rank starts from the same one.
    """

    r: int = 16
    alpha: float = 64
    dropout: float = 0.1
    target_modules: Sequence[str] = DEFAULT_TARGETS
    use_dora: bool = True
    init: str = "gaussian"
    seed: int = 42


def add_adapter(backbone: Phi3VModel, settings: LoraSettings) -> PeftModel:
    """Wraps the backbone with a fresh adapter, in float32 whatever the backbone's dtype; the rest is frozen.

    Raises:
        InputError: a target that matches no linear layer, or a value out of range.
    """
    _check_settings(backbone, settings)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        exclude_modules=_UNUSED_LAYER.format(last=backbone.config.vision_config.num_hidden_layers - 1),
        use_dora=settings.use_dora,
        init_lora_weights=_INITS[settings.init],
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        adapted = get_peft_model(backbone, config)
    backbone.freeze_unused()
    return adapted


def load_adapter(backbone: Phi3VModel, folder: Path, trainable: bool = False) -> PeftModel:
    """Wraps the backbone with a saved adapter (safetensors or a `.bin` pickle, opened with `weights_only=True`).

    Raises:
        InputError: unreadable, or not every tensor of the file has its place and every place its tensor (PEFT only
            warns and then runs with half of an adapter).
    """
    file = next((folder / name for name in _ADAPTER_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder}: no adapter weights ({' or '.join(_ADAPTER_WEIGHTS)})")
    found = tensor_shapes(file)
    check_adapter_config(folder / ADAPTER_CONFIG, found)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = not trainable
        adapted = get_peft_model(backbone, config)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{folder / ADAPTER_CONFIG}: not a usable adapter ({' '.join(str(error).split())})") from error
    expected = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if odd:
        raise InputError(
            f"{file}: the adapter does not fit the model: {len(odd)} of {len(expected)} tensors differ, first {odd[0]} "
            f"(file {found.get(odd[0])}, model {expected.get(odd[0])})"
        )
    set_peft_model_state_dict(adapted, _load_tensors(file))
    backbone.freeze_unused()
    return adapted


def _load_tensors(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    tensors: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return tensors


def _check_settings(backbone: Phi3VModel, settings: LoraSettings) -> None:
    linears = {name.rsplit(".", 1)[-1] for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(set(settings.target_modules) - linears)
    if unknown or not settings.target_modules:
        raise InputError(
            f"lora_target_modules: {', '.join(unknown) or 'none given'}: no such linear layer; the model has "
            f"{', '.join(sorted(linears))}"
        )
    if settings.r < 1 or not 0 <= settings.dropout < 1 or settings.alpha <= 0:
        raise InputError(f"LoRA needs r >= 1, alpha > 0 and 0 <= dropout < 1, not {settings}")
    if settings.init not in _INITS:
        raise InputError(f"unknown LoRA init {settings.init!r}; expected one of {', '.join(_INITS)}")


def read_base_name(config: dict[str, Any], folder: Path) -> str:
    """Where the adapter's base weights are: as written, or beside the adapter.

    Raises:
        InputError: adapter_config.json does not say.
    """
    base = config.get("base_model_name_or_path")
    if not base:
        raise InputError(f"{folder / ADAPTER_CONFIG}: names no base model; pass the base as path and this as adapter")
    beside = folder / str(base)
    return str(beside) if not Path(base).is_dir() and beside.is_dir() else str(base)
