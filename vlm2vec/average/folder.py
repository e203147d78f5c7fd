"""What is written, and that it appears as a whole."""

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

# Files that say how a model is built and how its inputs are made; weights, cards and logs are none.
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
    """Writes the weighted mean of adapters or of models, in their dtype, added up in float64.

    Everything but the weights is the first one's. The same inputs give the same bytes.

    Args:
        names: Two or more folders or Hugging Face repositories, of one kind.
        output: The folder to make. It appears under its name when it is complete.
        weights: One a folder, above 0; only their ratios count. None: all the same.
        factors: Of adapters, see `mean_tensors`; None: "exact".
        max_shard_size: Of models: bytes of a weight file, or as in "5GB", which None means. At no time more than one
            file's tensors are in memory.
        allow_other_base: Average what was trained from different weights.

    Returns:
        The weights, of which the sum is 1.

    Raises:
        InputError: Folders that differ in more than numbers, an output that exists, an option without effect.
    """
    refuse_filled(output)
    shares = _shares(names, weights)
    size = parse_size(DEFAULT_SHARD_SIZE if max_shard_size is None else max_shard_size)
    sources = [Source.read(name) for name in names]
    compare(sources, allow_other_base)
    first = sources[0]
    if factors is not None and not first.is_adapter:
        raise InputError("--lora: the folders are whole models, not adapters; leave it out")
    if max_shard_size is not None and first.is_adapter:
        raise InputError("--max_shard_size: an adapter is one file; leave it out")
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
        raise InputError(f"only {' '.join(names)} to average: give two or more folders and the one to make")
    given = [1.0] * len(names) if weights is None else list(weights)
    if len(given) != len(names):
        raise InputError(f"--weights: {len(given)} for {len(names)} folders; give one for each")
    bad = next((weight for weight in given if not (weight > 0 and math.isfinite(weight))), None)
    if bad is not None:
        raise InputError(f"--weights: {bad} is not above 0; leave out the folder that is not to count")
    total = math.fsum(given)
    return [weight / total for weight in given]


def _carry(source: Source, folder: Path) -> None:
    """Copies what is not a weight; of an adapter, `ADAPTER_CONFIG` is written anew."""
    left_out = {file for pattern in _NOT_CARRIED for file in source.folder.glob(pattern)}
    for file in sorted({file for pattern in _CARRIED for file in source.folder.glob(pattern)} - left_out):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _adapter_config(source: Source, times: int) -> dict[str, Any]:
    """The first adapter's, for `times` its rank."""
    written = read_json(source.folder / ADAPTER_CONFIG)
    written |= {key: source.config[key] for key in ("r", "lora_alpha")}
    name = source.base or None
    return _scaled(written, times) | {
        "inference_mode": True,
        "base_model_name_or_path": os.path.abspath(name) if name and Path(name).is_dir() else name,
    }


def _scaled(config: dict[str, Any], times: int) -> dict[str, Any]:
    """adapter_config.json with `times` the rank, and an alpha that scales the product as before."""
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
    """Of a model that has several bases, none is noted; an adapter is used on the first one's."""
    if not source.is_adapter and (folder / SETTINGS_FILE).is_file():
        write_json(folder / SETTINGS_FILE, read_json(folder / SETTINGS_FILE) | {"base_fingerprint": None})
