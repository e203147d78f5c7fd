"""The `--deepspeed` file: the part of DeepSpeed's configuration that is the user's, every key of it known."""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm2vec.errors import InputError
from vlm2vec.installed.settings_files import engine_file

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
_SECTIONS = ("zero_optimization", "comms_logger")
# ZeRO's keys that a test trains with, by the stages in which they do something.
_GRADIENT_KEYS = ("contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "overlap_comm", "offload_optimizer")
_STAGE_1_2_KEYS = (
    "allgather_partitions",
    "allgather_bucket_size",
    "use_multi_rank_bucket_allreduce",
)
_STAGE_3_KEYS = (
    "offload_param",
    "sub_group_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_gather_16bit_weights_on_model_save",
    "stage3_use_all_reduce_for_fetch_params",
    "stage3_allgather_sequential",
    "log_trace_cache_warnings",
)
ACCEPTED_KEYS = {
    1: frozenset((*_GRADIENT_KEYS, *_STAGE_1_2_KEYS)),
    2: frozenset((*_GRADIENT_KEYS, *_STAGE_1_2_KEYS)),
    3: frozenset((*_GRADIENT_KEYS, *_STAGE_3_KEYS)),
}
_ROUNDS = "ranks would exchange rounded values, so that the update depends on their number"
_OLD = "DeepSpeed no longer reads it; write"
# Why other keys must keep DeepSpeed's default.
_REFUSED = {
    "compute_grad_norm": "--max_grad_norm and the log need the gradient's norm",
    "cpu_offload": f'{_OLD} "offload_optimizer": {{"device": "cpu"}}',
    "cpu_offload_param": f'{_OLD} "offload_param": {{"device": "cpu"}}',
    "cpu_offload_use_pin_memory": f'{_OLD} "pin_memory" in the section of what is offloaded',
    "ignore_unused_parameters": "parameters of the vision tower are unused on a rank without images",
    "load_from_fp32_weights": "a resume has to restore the float32 weights",
    "memory_efficient_linear": "it follows from --bf16 and --lora",
    "round_robin_gradients": "with it, DeepSpeed 0.19.8 mixes up weights and gradients of different parameters",
    "stage3_gather_fp16_weights_on_model_save": f'{_OLD} "stage3_gather_16bit_weights_on_model_save"',
    "stage3_module_granularity_threshold": "with it, DeepSpeed 0.19.8 stops with a shape error",
    "zenflow": "it delays the update of some weights beyond their global batch",
    "zero_quantized_gradients": _ROUNDS,
    "zero_quantized_nontrainable_weights": _ROUNDS,
    "zero_quantized_weights": _ROUNDS,
}


def read_engine_file(path: Path) -> dict[str, Any]:
    """The content of the file, which may be given by its name in ds_configs/ alone, such as zero2.

    Raises:
        InputError: The file cannot be read, sets what the flags set, holds a key that DeepSpeed does not know or a
            value that it does not take, or asks for an unsupported ZeRO stage.
    """
    try:
        config = json.loads(engine_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--deepspeed {path}: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization", {}), dict):
        raise InputError(f"--deepspeed {path}: expected an object with a section 'zero_optimization'")
    for key, flag in MANAGED_KEYS.items():
        if key in config:
            raise InputError(f"--deepspeed {path}: remove '{key}', it follows from {flag}")
    _refuse_unknown(path, config, "", (*_PLAIN_KEYS, *_SECTIONS))
    stage = config.get("zero_optimization", {}).get("stage")
    if type(stage) is not int or stage not in ACCEPTED_KEYS:
        raise InputError(f"--deepspeed {path}: zero_optimization.stage must be 1, 2 or 3, not {stage!r}")
    _check_keys(path, config)
    _check_zero(path, config["zero_optimization"])
    return config


def _check_zero(path: Path, section: Mapping[str, Any]) -> None:
    """Refuses what has no effect in the stage, what does not train the same, and what fails."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    stage, fields = section["stage"], DeepSpeedZeroConfig.model_fields
    aliases = {name: each.alias or name for name, each in fields.items()}
    defaults = {aliases[name]: each.default for name, each in fields.items()}
    for key, value in section.items():
        name = aliases.get(key, key)
        if name == "stage" or name in ACCEPTED_KEYS[stage] or value == defaults[name]:
            continue
        why = _REFUSED.get(name)
        if why is None:
            others = [str(other) for other, keys in ACCEPTED_KEYS.items() if name in keys]
            why = f"it has no effect in stage {stage}, only in {' and '.join(others)}" if others else "it is not tested"
        raise InputError(f"--deepspeed {path}: remove 'zero_optimization.{key}' ({json.dumps(value)}): {why}")


def _check_keys(path: Path, config: Mapping[str, Any]) -> None:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    sections = dict(zip(_SECTIONS, (DeepSpeedZeroConfig, CommsLoggerConfig), strict=True))
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
            raise InputError(f"--deepspeed {path}: unknown key '{place}{key}'; did you mean '{place}{near[0]}'?")
