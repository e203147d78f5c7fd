"""The configuration in force as YAML that `--config` takes: printed by `--print_config`, kept in a run's folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from vlm2vec.errors import printable
from vlm2vec.files import committed
from vlm2vec.inputs.packing import TokenBudget
from vlm2vec.messages.words import counted
from vlm2vec.training.flags.run import RunSettings, argument_defaults

# In a run's folder.
CONFIG_FILE = "config.yaml"
DEFAULT, RESOLVED, LATER = "default", "resolved", "resolved when the run starts"


def in_force(settings: RunSettings) -> dict[str, Any]:
    """The settings as flags that give the same settings again; None for flags to leave out.

    Of two flags that say one thing the one remains that names the result: steps, not epochs. What a model's folder
    says stays out, but for the longest text: it belongs to the folder, and checkpoints record it as it was asked for.
    """
    flags, chunking = settings.flags, settings.chunking
    flags |= {"global_batch_size": settings.cluster.global_batch_size, "per_device_train_batch_size": None}
    flags["max_steps"] = settings.schedule.max_steps or None
    if settings.schedule.max_steps:
        flags |= {"num_train_epochs": None, "warmup_steps": settings.schedule.warmup_steps, "warmup_ratio": None}
    if isinstance(chunking.packing, TokenBudget):
        flags |= {"chunk_tokens": chunking.packing.chunk_tokens, "no_grad_chunk_tokens": chunking.no_grad_tokens}
    if chunking.keep_graphs is not None:
        flags["keep_graphs"] = chunking.keep_graphs
    return {name: None if value == [] else value for name, value in flags.items()}


def source(name: str, value: Any, settings: RunSettings) -> str:
    """Where a flag's value in force comes from: "flag", "recipe", "default" or "resolved"."""
    given_by = settings.arguments.sources.get(name)
    if name == "max_steps" and value is None:
        return LATER
    if given_by is not None and str(value) == str(settings.flags[name]):
        return given_by
    default = argument_defaults()[name]
    is_default = given_by is None and value == (None if default == [] else default)
    return DEFAULT if is_default else RESOLVED


def config_text(settings: RunSettings, header: Iterable[str] = ()) -> str:
    """All flags as YAML, one per line, each with its source as a comment.

    Args:
        settings: What is in force.
        header: Lines to put above, as comments.
    """
    return "".join(f"{line}\n" for line in _lines(settings, header))


def _lines(settings: RunSettings, header: Iterable[str]) -> Iterator[str]:
    for line in header:
        yield f"# {printable(' '.join(line.split()))}".rstrip()
    for name, value in in_force(settings).items():
        # One line a flag, whatever its length; a list in brackets.
        style = None if isinstance(value, list) else False
        text = yaml.safe_dump({name: value}, default_flow_style=style, width=float("inf"), allow_unicode=True)
        yield f"{text.rstrip()}  # {source(name, value, settings)}"


def run_header(settings: RunSettings, first_step: int, versions: Mapping[str, str], device: str) -> list[str]:
    """What a run's file says above the flags: on what it runs them.

    Args:
        settings: What is in force.
        first_step: Steps done before this start.
        versions: Of packages, by name.
        device: Device, backend, attention and optimizer, as the run's first line names them.
    """
    ranks, stage = counted(settings.cluster.num_ranks, "rank"), settings.cluster.zero_stage
    return [
        f"The configuration in force, after {first_step} steps, on {ranks}, ZeRO-{stage}; usable as --config.",
        ", ".join(f"{name} {number}" for name, number in versions.items()),
        device,
    ]


def write_config(output_dir: Path, settings: RunSettings, header: Iterable[str]) -> None:
    """Writes a run's configuration into its folder, in place of an earlier start's.

    Each checkpoint records the flags of the start that wrote it.
    """
    with committed(output_dir / CONFIG_FILE) as path:
        path.write_text(config_text(settings, header), encoding="utf-8")
