"""Writes the averaged folder: weights, configuration, card; it appears under its name only when complete."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm2vec.average.card import write_card
from vlm2vec.average.mean import Factors, mean_tensors
from vlm2vec.average.sources import Source, compare
from vlm2vec.errors import InputError
from vlm2vec.export.companions import write_companions
from vlm2vec.export.folder import DEFAULT_SHARD_SIZE
from vlm2vec.export.safetensors_files import parse_size, write_file, write_tensors
from vlm2vec.files import appearing_folder, refuse_filled
from vlm2vec.formats.json_files import read_json, write_json
from vlm2vec.model_folder.adapter_files import ADAPTER_CONFIG, WRITTEN_WEIGHTS
from vlm2vec.model_folder.settings import SETTINGS_FILE

# Files that say how a model is built and how its inputs are made: no weights, cards or logs.
_CARRIED = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "*.py")
_NOT_CARRIED = ("*.index.json", "trainer_state.json", "run.json", "scores.json")


def average(
    names: Sequence[str],
    output: Path,
    weights: Sequence[float] | None = None,
    *,
    factors: Factors | None = None,
    max_shard_size: int | str | None = None,
    allow_other_base: bool = False,
) -> list[float]:
    """Writes the weighted mean of adapters or of models. Sums are in float64, results in the sources' dtype.

    All files except the weights are copied from the first folder. The same inputs give the same bytes.

    Args:
        names: Two or more folders or Hugging Face repositories, all adapters or all models.
        output: The folder to make. It appears under its name when it is complete.
        weights: One per folder, above 0; only their ratios count. None: all equal.
        factors: For adapters, see `mean_tensors`; None means "exact".
        max_shard_size: For models: largest weight file, in bytes or as a text such as "5GB" (the default). No more than
            one file's tensors are in memory at a time.
        allow_other_base: Average also what was trained from different weights.

    Returns:
        The weights, normalised to a sum of 1.

    Raises:
        InputError: The folders differ in more than their weights, the output exists, or an option has no effect.
    """
    refuse_filled(output)
    shares = _shares(names, weights)
    size = parse_size(DEFAULT_SHARD_SIZE if max_shard_size is None else max_shard_size)
    sources = [Source.read(name) for name in names]
    compare(sources, allow_other_base)
    first = sources[0]
    if factors is not None and not first.is_adapter:
        raise InputError("--lora has no effect: the folders are whole models, not adapters; leave it out")
    if max_shard_size is not None and first.is_adapter:
        raise InputError("--max_shard_size has no effect: an adapter is one file; leave it out")
    factors = factors or "exact"
    tensors = mean_tensors(sources, shares, factors)
    with appearing_folder(output) as folder:
        _carry(first, folder)
        if first.is_adapter:
            write_file(tensors, folder / WRITTEN_WEIGHTS, first.dtypes)
            write_json(folder / ADAPTER_CONFIG, _adapter_config(first, len(sources) if factors == "exact" else 1))
        else:
            write_tensors(tensors, folder, first.dtypes, size)
        if not all(source.settings.base_fingerprint == first.settings.base_fingerprint for source in sources):
            _forget_base(first, folder)
        write_companions(folder)
        write_card(folder, output.resolve().name, sources, shares, factors)
    return shares


def _shares(names: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    if len(names) < 2:
        raise InputError(f"only {' '.join(names)} to average: give two or more folders, then the folder to make")
    given = [1.0] * len(names) if weights is None else list(weights)
    if len(given) != len(names):
        raise InputError(f"--weights: {len(given)} weights for {len(names)} folders; give one per folder")
    bad = next((weight for weight in given if not (weight > 0 and math.isfinite(weight))), None)
    if bad is not None:
        raise InputError(f"--weights: {bad} is not a finite number above 0; leave out a folder that should not count")
    total = math.fsum(given)
    return [weight / total for weight in given]


def _carry(source: Source, folder: Path) -> None:
    """Copies all files that are not weights; an adapter's `ADAPTER_CONFIG` is overwritten later."""
    left_out = {file for pattern in _NOT_CARRIED for file in source.folder.glob(pattern)}
    for file in sorted({file for pattern in _CARRIED for file in source.folder.glob(pattern)} - left_out):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _adapter_config(source: Source, times: int) -> dict[str, Any]:
    """adapter_config.json of the first adapter, changed for `times` its rank."""
    written = read_json(source.folder / ADAPTER_CONFIG)
    written |= {key: source.config[key] for key in ("r", "lora_alpha")}
    name = source.base or None
    return _scaled(written, times) | {
        "inference_mode": True,
        "base_model_name_or_path": os.path.abspath(name) if name and Path(name).is_dir() else name,
    }


def _scaled(config: dict[str, Any], times: int) -> dict[str, Any]:
    """adapter_config.json with `times` the rank, and alpha changed so that the product keeps its scale."""
    # PEFT multiplies by alpha / r, or by alpha / sqrt(r) with rsLoRA.
    growth = math.sqrt(times) if config.get("use_rslora") else times

    def alpha(value: float) -> float:
        return int(value * growth) if float(value * growth).is_integer() else value * growth

    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    scaled = {**config, "r": config["r"] * times, "lora_alpha": alpha(config["lora_alpha"])}
    if ranks:
        scaled["rank_pattern"] = {name: rank * times for name, rank in ranks.items()}
    if alphas:
        scaled["alpha_pattern"] = {name: alpha(value) for name, value in alphas.items()}
    return scaled


def _forget_base(source: Source, folder: Path) -> None:
    """Removes the base's fingerprint from a model averaged over several bases; adapters keep the first one's base."""
    if not source.is_adapter and (folder / SETTINGS_FILE).is_file():
        write_json(folder / SETTINGS_FILE, read_json(folder / SETTINGS_FILE) | {"base_fingerprint": None})
