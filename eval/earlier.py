"""Adding to a folder that already has scores: allowed for the same model, settings and data, otherwise refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vlm2vec.backbones.image_limits import LIMITS
from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.errors import InputError
from vlm2vec.evaluation.data.selection import BENCHMARKS, listed
from vlm2vec.evaluation.scores_file import SCORES_FILE, read_summary
from vlm2vec.formats.json_files import checked
from vlm2vec.mmeb import Benchmark
from vlm2vec.model_folder.settings import shown

EMBEDDINGS_FOLDER = "embeddings"
SCORE_SUFFIX = "_score.json"
_REMEDY = "choose a different --encode_output_path, or delete that folder"
# The fields of `scores.json` that decide a model's vectors.
MODEL_SETTINGS = ("fingerprint", *LIMITS, "max_len", "normalize", "prompt_format")


def earlier_scores(folder: Path, names: Collection[str]) -> dict[str, Any] | None:
    """Reads the scores in a folder; None if it has none.

    Args:
        folder: The output folder.
        names: The datasets to be scored now.

    Raises:
        InputError: The scores are damaged, or there are files of other datasets that `scores.json` does not list.
    """
    if (folder / SCORES_FILE).exists():
        return read_summary(folder)
    left = {path.name.removesuffix(SCORE_SUFFIX) for path in folder.glob(f"*{SCORE_SUFFIX}")}
    if (folder / EMBEDDINGS_FOLDER).is_dir():
        left -= set(names)  # files of a run that ended before its last file
    if left:
        raise InputError(
            f"{folder}: holds {min(left)}{SCORE_SUFFIX} of a different evaluation, but no {SCORES_FILE}; {_REMEDY}"
        )
    return None


def refuse_other(
    folder: Path,
    earlier: Mapping[str, Any],
    about: Mapping[str, Any],
    sources: Mapping[str, Mapping[str, str]],
    benchmark: Benchmark | None,
) -> None:
    """Refuses to add to scores of a different model, with other settings or of other data.

    Args:
        folder: The output folder.
        earlier: The content of its `scores.json`.
        about: The new run's part of `scores.json`: model and way of counting.
        sources: For each dataset of the new run, where its rows come from, and their digest.
        benchmark: The new run's benchmark.

    Raises:
        InputError: Something differs; the message has both values.
    """
    before, now = earlier["model"], about["model"]
    differing = [
        f"{name} {shown(was, value)}, now {shown(value, was)}"
        for name in MODEL_SETTINGS
        if not _is_same(was := _setting(before, name), value := _setting(now, name))
    ]
    if before.get("fingerprint") != now["fingerprint"]:
        named = before["checkpoint_path"] or before["model_name"]
        raise InputError(f"{folder}: holds scores of a different model ({named}; {', '.join(differing)}); {_REMEDY}")
    if earlier.get("strict_original", False) != about["strict_original"]:
        differing.append(f"strict_original {earlier.get('strict_original', False)}, now {about['strict_original']}")
    if differing:
        raise InputError(f"{folder}: holds scores with other settings ({', '.join(differing)}); {_REMEDY}")
    changed = [
        name
        for name, source in sources.items()
        if name in earlier["datasets"] and earlier["datasets"][name].get("data") != source["data"]
    ]
    if changed:
        named = ", ".join(changed[:3])
        raise InputError(
            f"{folder}: holds scores of {named} on different rows or images, or by an older version; {_REMEDY}"
        )
    common_benchmark(folder, earlier, benchmark, sources)


def _setting(model: Mapping[str, Any], name: str) -> Any:
    """A setting of a model in `scores.json`. Files older than prompt formats mean the raw one."""
    if name != "prompt_format":
        return model.get(name)
    return checked(PromptFormat, dict(model.get(name) or {}), SCORES_FILE)


def _is_same(before: Any, now: Any) -> bool:
    return before.is_same(now) if isinstance(before, PromptFormat) else bool(before == now)


def common_benchmark(
    folder: Path, earlier: Mapping[str, Any], benchmark: Benchmark | None, names: Collection[str]
) -> Benchmark | None:
    """The benchmark of earlier and new datasets together.

    Raises:
        InputError: A dataset would change its group.
    """
    before = BENCHMARKS.get(earlier["benchmark"])
    if before == benchmark:
        return benchmark
    together = before or benchmark
    others = set(earlier["datasets"]) if before is None else set(names)
    if (before and benchmark) or (together and others & listed(together)):
        called = [each.name if each else "folder" for each in (before, benchmark)]
        raise InputError(f"{folder}: holds scores with --benchmark {called[0]}, now {called[1]}; {_REMEDY}")
    return together
