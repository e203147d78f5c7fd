"""The `--deepspeed` file: the part of DeepSpeed's configuration that is the user's, every key of it known."""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm2vec.errors import InputError

# Keys that follow from the arguments. A file that sets them too could contradict the flags, so they are refused there.
MANAGED_KEYS = {
    "train_batch_size": "--global_batch_size",
    "train_micro_batch_size_per_gpu": "--global_batch_size",
    "gradient_accumulation_steps": "--chunk_tokens (a global batch is one step, however many chunks it has)",
    "optimizer": "--learning_rate, --weight_decay, --adam_beta1, --adam_beta2 and --adam_epsilon",
    "scheduler": "--lr_scheduler_type, --warmup_steps and --max_steps",
    "gradient_clipping": "--max_grad_norm",
    "bf16": "--bf16",
    "fp16": "--bf16 (the loss over a large batch needs bfloat16's range)",
    "steps_per_print": "--logging_steps",
    "communication_data_type": "--bf16 (gradients are reduced in float32)",
    "data_types": "--bf16 (gradients add up in float32)",
    "flops_profiler": "--flops_profile_step (a step has many forward passes, and this counts the last one only)",
}
# DeepSpeed ignores a key that it does not know at the top, and would then run without what it was asked for.
_PLAIN_KEYS = (
    "dump_state",
    "gradient_predivide_factor",
    "memory_breakdown",
    "prescale_gradients",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
)


def read_engine_file(path: Path) -> dict[str, Any]:
    """The file's content.

    Raises:
        InputError: The file cannot be read, sets what the flags set, holds a key that DeepSpeed does not know or a
            value that it does not take, or asks for an unsupported ZeRO stage.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--deepspeed {path}: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization", {}), dict):
        raise InputError(f"--deepspeed {path}: expected an object with a section 'zero_optimization'")
    for key, flag in MANAGED_KEYS.items():
        if key in config:
            raise InputError(f"--deepspeed {path}: remove '{key}', it follows from {flag}")
    stage = config.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2, 3):
        raise InputError(f"--deepspeed {path}: zero_optimization.stage must be 1, 2 or 3, not {stage}")
    if "memory_efficient_linear" in config["zero_optimization"]:
        raise InputError(
            f"--deepspeed {path}: remove 'zero_optimization.memory_efficient_linear', it follows from --bf16 and --lora"
        )
    _check_keys(path, config)
    return config


def _check_keys(path: Path, config: Mapping[str, Any]) -> None:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    sections = {"zero_optimization": DeepSpeedZeroConfig, "comms_logger": CommsLoggerConfig}
    _refuse_unknown(path, config, "", (*_PLAIN_KEYS, *sections))
    for name, model in sections.items():
        section = config.get(name, {})
        _check_section(path, section, name, model)
        try:
            model(**section)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join([name, *(str(part) for part in first["loc"])])
            raise InputError(f"--deepspeed {path}: '{place}': {first['msg']}") from error


def _check_section(path: Path, section: Any, name: str, model: Any) -> None:
    if not isinstance(section, dict):
        raise InputError(f"--deepspeed {path}: '{name}' must be an object, not {section!r}")
    fields = {alias: each for field, each in model.model_fields.items() for alias in (each.alias or field, field)}
    _refuse_unknown(path, section, f"{name}.", tuple(fields))
    for key, value in section.items():
        for inner in _models_of(fields[key].annotation):
            if value is not None:
                _check_section(path, value, f"{name}.{key}", inner)


def _models_of(annotation: Any) -> Iterator[Any]:
    """The settings classes in a field's type, such as that of `X | None`."""
    for each in (annotation, *typing.get_args(annotation)):
        if hasattr(each, "model_fields"):
            yield each


def _refuse_unknown(path: Path, section: Mapping[str, Any], place: str, known: tuple[str, ...]) -> None:
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.0)
            raise InputError(f"--deepspeed {path}: unknown key '{place}{key}'; the nearest known is '{place}{near[0]}'")
