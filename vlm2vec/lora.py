"""LoRA and DoRA adapters on the backbone through PEFT: creates and loads them, with the checks that PEFT lacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from vlm2vec.backbones.checkpoint import tensor_shapes
from vlm2vec.backbones.interface import Backbone
from vlm2vec.choices import LoraSettings
from vlm2vec.dora import install_dora
from vlm2vec.errors import InputError
from vlm2vec.model_folder.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_shapes,
    check_adapter,
    module_adapter_name,
    published_adapter,
    read_adapter_config,
)
from vlm2vec.model_folder.adapter_schema import check_adapter_config

# Both draw A at random and set B to zero: normal with standard deviation 1 / r, or PEFT's uniform default.
_INITS: dict[str, str | bool] = {"gaussian": "gaussian", "kaiming": True}


def add_adapter(backbone: Backbone, settings: LoraSettings) -> PeftModel:
    """Wraps the backbone with a new adapter in float32, whatever the backbone's dtype, and freezes the rest.

    Layers that are already frozen get no adapter: it would never be trained, and a checkpoint, which leaves out frozen
    parameters, would lack it.

    Raises:
        InputError: A target matches no linear layer or only frozen ones, or a value is out of range.
    """
    _check_settings(settings)
    targets = backbone.lora_targets if settings.target_modules is None else settings.target_modules
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=trainable_targets(backbone, targets),
        use_dora=settings.use_dora,
        init_lora_weights=_INITS[settings.init],
    )
    # The weights are drawn on the CPU; without `devices`, fork_rng warns on a machine with several GPUs.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        adapted = get_peft_model(backbone, config)
    install_dora(adapted, settings.dropout_on)
    return adapted


def trainable_targets(backbone: nn.Module, targets: Sequence[str]) -> list[str]:
    """Layers to adapt, without frozen ones, in a form that every version of PEFT understands.

    A target without frozen layers stays as it is. Otherwise its trainable layers are listed by their full names: PEFT's
    `exclude_modules` is newer than adapters that must be readable, and a pattern that contains an embedding's name
    makes PEFT save embeddings.

    Raises:
        InputError: A target matches no linear layer, also matches something else, or matches only frozen layers.
    """
    modules = dict(backbone.named_modules())
    found: list[str] = []
    unknown: list[str] = []
    for target in dict.fromkeys(targets):
        matches = [name for name in modules if name == target or name.endswith(f".{target}")]
        linears = [name for name in matches if isinstance(modules[name], nn.Linear)]
        trainable = [name for name in linears if modules[name].weight.requires_grad]
        if not linears or target.count(".") > 1:
            unknown.append(target)
        elif len(linears) < len(matches):
            other = next(name for name in matches if name not in linears)
            raise InputError(
                f"lora_target_modules: {target} also matches {other}, which is no linear layer; give more of the name, "
                f"such as {'.'.join(linears[0].split('.')[-2:])}"
            )
        else:
            found += [target] if len(trainable) == len(matches) else trainable
    if unknown or not targets:
        names = sorted({name.rsplit(".", 1)[-1] for name, each in modules.items() if isinstance(each, nn.Linear)})
        raise InputError(
            f"lora_target_modules: {', '.join(unknown) or 'none given'}: no such linear layer; the model has "
            f"{', '.join(names)}"
        )
    if not found:
        raise InputError(
            f"lora_target_modules: all layers named {', '.join(targets)} are frozen or never run, so nothing would be "
            "trained; name different layers, or do not freeze these"
        )
    return found


def load_adapter(backbone: Backbone, folder: Path, trainable: bool = False) -> PeftModel:
    """Wraps the backbone with a saved adapter (safetensors or a `.bin` pickle, opened with `weights_only=True`).

    Raises:
        InputError: The file is unreadable, or its tensors and the adapter's do not match one to one (PEFT only warns
            and then runs with half an adapter).
    """
    file = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder}: holds no adapter weights ({' or '.join(ADAPTER_WEIGHTS)})")
    found = tensor_shapes(file)
    check_adapter_config(folder / ADAPTER_CONFIG, found)
    config = read_adapter_config(folder, backbone)
    config.inference_mode = not trainable
    config.base_model_name_or_path = None  # PEFT warns if the base was loaded by a different name
    try:
        adapted = get_peft_model(backbone, config)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{folder / ADAPTER_CONFIG}: not a usable adapter ({' '.join(str(error).split())})") from error
    check_adapter(file, published_adapter(found, backbone), adapter_shapes(adapted))
    tensors = published_adapter(_load_tensors(file), backbone)
    state = {module_adapter_name(name, backbone): tensor for name, tensor in tensors.items()}
    set_peft_model_state_dict(adapted, state)
    install_dora(adapted)
    backbone.freeze_unused()
    return adapted


def _load_tensors(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    tensors: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return tensors


def _check_settings(settings: LoraSettings) -> None:
    if settings.r < 1 or not 0 <= settings.dropout < 1 or settings.alpha <= 0:
        raise InputError(f"LoRA needs r >= 1, alpha > 0 and 0 <= dropout < 1, not {settings}")
    if settings.init not in _INITS:
        raise InputError(f"unknown LoRA init {settings.init!r}; expected one of {', '.join(_INITS)}")
