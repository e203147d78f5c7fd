"""A folder that holds scores already: the same model's are added to, anything else is refused."""

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
_REMEDY = "choose another --encode_output_path, or delete that folder"
# What decides a model's vectors, as `scores.json` calls it.
MODEL_SETTINGS = ("fingerprint", *LIMITS, "max_len", "normalize", "prompt_format")


def earlier_scores(folder: Path, names: Collection[str]) -> dict[str, Any] | None:
    """The scores that a folder holds; None if it holds none.

    Args:
        folder: Of the output.
        names: The datasets that are about to be scored.

    Raises:
        InputError: Damaged scores, or files of other datasets that no `scores.json` accounts for.
    """
    if (folder / SCORES_FILE).exists():
        return read_summary(folder)
    left = {path.name.removesuffix(SCORE_SUFFIX) for path in folder.glob(f"*{SCORE_SUFFIX}")}
    if (folder / EMBEDDINGS_FOLDER).is_dir():
        left -= set(names)  # of a run that ended before its last file
    if left:
        raise InputError(
            f"{folder}: holds {min(left)}{SCORE_SUFFIX} of another evaluation, but no {SCORES_FILE}; {_REMEDY}"
        )
    return None


def refuse_other(
    folder: Path,
    earlier: Mapping[str, Any],
    about: Mapping[str, Any],
    sources: Mapping[str, Mapping[str, str]],
    benchmark: Benchmark | None,
) -> None:
    """Refuses to add to scores of another model, other settings or other data.

    Args:
        folder: Of the output.
        earlier: What its `scores.json` says.
        about: The new run's part of `scores.json`: model and way of counting.
        sources: By dataset of the new run, where its rows come from and what they are.
        benchmark: Of the new run.

    Raises:
        InputError: What differs, with both values.
    """
    before, now = earlier["model"], about["model"]
    differing = [
        f"{name} {shown(was, value)}, now {shown(value, was)}"
        for name in MODEL_SETTINGS
        if not _is_same(was := _setting(before, name), value := _setting(now, name))
    ]
    if before.get("fingerprint") != now["fingerprint"]:
        named = before["checkpoint_path"] or before["model_name"]
        raise InputError(f"{folder}: holds scores of another model ({named}; {', '.join(differing)}); {_REMEDY}")
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
            f"{folder}: holds scores of {named} on other rows or images, or by an older version; {_REMEDY}"
        )
    common_benchmark(folder, earlier, benchmark, sources)


def _setting(model: Mapping[str, Any], name: str) -> Any:
    """A setting of a model in `scores.json`; from before there were prompt formats all were the raw one."""
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
        InputError: A dataset would move to another group.
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
