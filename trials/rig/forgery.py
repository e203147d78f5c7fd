"""Writes wrong files whose checksums all match, as a faulty or hostile writer would."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, "", "x", "0" * 64, "../evil", "/etc", "\ud800", [], [[]], {}, {"a": 1}),
    *(-1, 0, 1, 7, 2**31, 2**62, 2**63, 2**64, 10**400, 1.5, 1e15, -0.0, float("nan"), float("inf")),
)
_ODD_NUMBERS = (-(2**63), -(2**31), -1, 0, 1, 2, 511, 512, 9_999, 2**31 - 1, 2**40, 2**62, 2**63 - 1)


def forge_json(content: Any, generator: random.Random) -> Any:
    """Changes one value, somewhere in a JSON document."""
    holder, key = generator.choice(list(_places(content)))
    kind = generator.choice(("odd", "odd", "near", "gone", "extra"))
    if kind == "gone":
        del holder[key]
    elif kind == "extra" and isinstance(holder, dict):
        holder["surprise"] = generator.choice(_ODD_VALUES)
    elif kind == "near" and type(holder[key]) is int:
        holder[key] += generator.choice((-2, -1, 1, 2))
    else:
        holder[key] = generator.choice(_ODD_VALUES)
    return content


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) of a document."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    return [(content, key) for key in keys] + [place for key in keys for place in _places(content[key])]


def seal_manifest(content: dict[str, Any]) -> None:
    """Recomputes the sums and the fingerprint."""
    with suppress(Exception):  # if the sums cannot be computed, they cannot be made to match
        for subset in content["subsets"].values():
            subset["num_samples"] = sum(shard["num_samples"] for shard in subset["shards"])
            totals: dict[str, int] = {}
            for shard in subset["shards"]:
                for reason, count in shard["skipped"].items():
                    totals[reason] = totals.get(reason, 0) + count
            subset["skipped"] = totals
        content["num_samples"] = sum(subset["num_samples"] for subset in content["subsets"].values())
    content.pop("fingerprint", None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["fingerprint"] = hashlib.sha256(canonical.encode()).hexdigest()


def forge_manifest(folder: Path, file: str, generator: random.Random) -> None:
    """Changes one value of the manifest, and the fingerprint accordingly."""
    path = folder / file
    content = json.loads(path.read_text())
    del content["fingerprint"]
    forge_json(content, generator)
    seal_manifest(content)
    path.write_text(json.dumps(content))


def forge_document(folder: Path, file: str, generator: random.Random) -> None:
    """Changes one value of a JSON file."""
    path = folder / file
    path.write_text(json.dumps(forge_json(json.loads(path.read_text()), generator)))


def forge_index(folder: Path, file: str, generator: random.Random) -> None:
    """Changes the index, and manifest and sidecar accordingly."""
    path = folder / file
    table = generator.choice(_TABLE_FORGERIES)(pq.read_table(path), generator)
    pq.write_table(table, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest_path, sidecar_path = folder / "manifest.json", path.with_suffix(".json")
    manifest, sidecar = json.loads(manifest_path.read_text()), json.loads(sidecar_path.read_text())
    (record,) = [each for each in manifest["subsets"][path.parent.name]["shards"] if each["name"] == path.stem]
    for each in (record, sidecar):
        each |= {"index_sha256": digest, "num_samples": table.num_rows}
    if generator.random() < 0.5:  # a writer that reports what it lost, or one that does not
        lost = record["rows"][1] - record["rows"][0] - table.num_rows
        for each in (record, sidecar):
            each["rows"] = [record["rows"][0], record["rows"][1] - lost]
    seal_manifest(manifest)
    manifest_path.write_text(json.dumps(manifest))
    sidecar_path.write_text(json.dumps(sidecar))


def _odd_number(table: pa.Table, generator: random.Random) -> pa.Table:
    return _edited(table, generator, lambda values, place: generator.choice(_ODD_NUMBERS))


def _neighbour(table: pa.Table, generator: random.Random) -> pa.Table:
    return _edited(table, generator, lambda values, place: int(values[place]) + generator.choice((-512, -1, 1, 512)))


def _swapped_values(table: pa.Table, generator: random.Random) -> pa.Table:
    return _edited(table, generator, lambda values, place: values[place - 1])


def _edited(table: pa.Table, generator: random.Random, value: Callable[[Any, int], Any]) -> pa.Table:
    number, place = generator.randrange(table.num_columns), generator.randrange(table.num_rows)
    field = table.schema.field(number)
    if pa.types.is_list(field.type):
        lists = table.column(number).to_pylist()
        lists[place] = _forged_list(lists[place], field.type.value_type, generator)
        return table.set_column(number, field, [pa.array(lists, field.type)])
    values = table.column(number).to_numpy().copy()
    new = value(values, place)
    if field.type == pa.bool_():
        values[place] = not values[place]
    else:
        bounds = np.iinfo(values.dtype)
        values[place] = min(max(int(new), bounds.min), bounds.max)
    return table.set_column(number, field, [pa.array(values, field.type)])


def _forged_list(values: list[Any], kind: pa.DataType, generator: random.Random) -> list[Any]:
    """Removes, adds, changes or moves an entry of a list, or of a list in it."""
    is_nested, place = pa.types.is_list(kind), generator.randrange(len(values) + 1)
    if is_nested and place < len(values):
        return [*values[:place], _forged_list(values[place], kind.value_type, generator), *values[place + 1 :]]
    bounds = np.iinfo((kind.value_type if is_nested else kind).to_pandas_dtype())
    odd: Any = min(max(generator.choice(_ODD_NUMBERS), bounds.min), bounds.max)
    odd = [odd] if is_nested else odd
    return generator.choice(
        [values[:-1], [*values, odd], values[::-1], [*values[:place], odd, *values[place + 1 :]], [], [odd] * 10_000]
    )


def _other_rows(table: pa.Table, generator: random.Random) -> pa.Table:
    """Removes, repeats or reorders rows."""
    rows = list(range(table.num_rows))
    kind = generator.choice(("lost", "repeated", "order"))
    if kind == "lost":
        rows.pop(generator.randrange(len(rows)))
    elif kind == "repeated":
        rows[generator.randrange(len(rows))] = generator.randrange(len(rows))
    else:
        generator.shuffle(rows)
    return table.take(rows)


def _other_type(table: pa.Table, generator: random.Random) -> pa.Table:
    number = generator.randrange(table.num_columns)
    kind = generator.choice((pa.float64(), pa.string(), pa.int64(), pa.int16()))
    name = generator.choice((table.schema.names[number], "surprise"))
    values = [None if generator.random() < 0.3 else 1] * table.num_rows
    return table.set_column(number, name, [pa.array(values, pa.int64()).cast(kind)])


_TABLE_FORGERIES = (_odd_number, _odd_number, _odd_number, _neighbour, _swapped_values, _other_rows, _other_type)
