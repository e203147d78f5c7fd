"""Error for a path that is not a folder of shards: says what it is instead, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

from vlm2vec.errors import InputError
from vlm2vec.shards.schema import MANIFEST_NAME, PLAN_NAME

_TABLE = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")
_DEFAULT_SPLIT = "original"  # the converter's default
_EVAL_SPLIT = "test"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_CONVERT = "python -m data_prep.convert"
_OWN_TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
# A folder may have many entries; the first ones are enough to recognise it.
_LISTED = 1000


def no_manifest(path: str, error: OSError, is_remote: bool = False) -> InputError:
    """Error for a manifest that cannot be read.

    Args:
        path: Path of the manifest.
        error: Error of reading it.
        is_remote: Whether the path is a URL; then the folder is not listed.
    """
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return InputError(f"{path}: cannot read the manifest ({error.strerror or error})")
    if is_remote:
        return InputError(f"{path}: no manifest; is the conversion (data_prep.convert) complete?")
    root = Path(path).parent
    try:
        return InputError(f"{root}: {_instead(root)}")
    except OSError as listing:
        return InputError(f"{root}: cannot be listed ({listing.strerror})")


def _instead(root: Path) -> str:
    if not root.exists():
        if _HUB_NAME.fullmatch(str(root)):
            return f"no such folder; if it is a dataset on the hub, convert it first: {_command(str(root), [])}"
        return "no such folder; expected the converter's output folder"
    if not root.is_dir():
        if root.suffix.lower() in _OWN_TABLES:
            return f"a table; convert it first: {_CONVERT} --dataset_name {root} --output_dir SHARDS"
        return "not a folder; expected the converter's output folder"
    entries = sorted(root.iterdir())[:_LISTED]
    if not entries:
        return f"no manifest: an empty folder; the converter fills one: {_CONVERT} --output_dir {root} ..."
    if (root / PLAN_NAME).is_file():
        return (
            f"no manifest: the conversion is not complete; run its command again ({_CONVERT} ... --output_dir {root}): "
            "it resumes"
        )
    splits = [match[1] for path in _tables(entries) if (match := _TABLE.fullmatch(path.name))]
    if splits and set(splits) == {_EVAL_SPLIT}:
        return f"no manifest: a dataset for evaluation ({_EVAL_SPLIT}-*.parquet); training needs converted shards"
    if splits:
        return f"no manifest: a dataset that is not converted; convert it first: {_command(str(root), splits)}"
    for folder in (*entries, root.resolve().parent):
        if (folder / MANIFEST_NAME).is_file():
            return f"no manifest: not a folder of shards; did you mean {folder}?"
    return "no manifest: not the converter's output folder"


def _tables(entries: list[Path]) -> list[Path]:
    folders = [path for path in entries if path.is_dir()]
    return [path for path in entries if path.suffix == ".parquet"] + [
        path for folder in folders for path in sorted(folder.glob("*.parquet"))[:_LISTED]
    ]


def _command(data_set: str, splits: list[str]) -> str:
    split = "" if not splits or _DEFAULT_SPLIT in splits else f" --split_name {splits[0]}"
    return f"{_CONVERT} --dataset_name {data_set} --subset_name all{split} --output_dir SHARDS"
