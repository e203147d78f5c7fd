"""Fuzz test: damages the files of an evaluation; each must be refused in one line or give the right values.

python -m trials.fuzz_results [--mutations N] [--seed S]
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from eval.comparison import Comparison
from eval.invocation import CALLS_FILE, Started, describe_calls, read_invocations
from eval.misses import Gallery
from eval.results import SOURCE_KEYS, read_scores, write_run
from eval.table import Run, metrics_table, score_table
from trials.rig.hand_made_eval import read, row, write_dataset
from vlm2vec.errors import InputError, run_program
from vlm2vec.evaluation.scoring import predictions_table, score_rows
from vlm2vec.export.scores import read_scores as read_card_scores
from vlm2vec.formats.json_files import with_checksum, write_json
from vlm2vec.messages.command_line import Parser, first_line
from vlm2vec.mmeb import MMEB
from vlm2vec.training.evaluation import read_best

DATASETS = ("GQA", "CIRR")
JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, -0.5, 1e12, 1e308, 2**70, 10**400),
    *("", "x", "0.5", "\ud800", [], [1], [0.1, 0.2], [0.9, 0.1], {}, {"a": 1}),
)


def make_run(folder: Path) -> None:
    """Writes a scored folder of two small datasets, with a best.json."""
    generator = np.random.default_rng(0)
    parts = {}
    for name in DATASETS:
        rows = [row(f"query {number}", [f"{number} {each}" for each in "abcdef"]) for number in range(20)]
        (loaded,), items = read(write_dataset(folder / "data", name, rows))
        vectors = generator.normal(size=(len(items), 4)).astype(np.float32)
        scores = score_rows(vectors, np.arange(len(items), dtype=np.int32), loaded)
        parts[name] = folder / f"{name}.parquet"
        pq.write_table(predictions_table(loaded, scores, items), parts[name])
    model = {"model_name": "m", "checkpoint_path": None, "num_crops": 4, "fingerprint": "0123456789abcdef"}
    model |= {"max_len": 256, "normalize": True}
    about = {"model": model, "strict_original": False, "num_items": 280, "warnings": ["a warning"], "image_dir": ""}
    sources = {name: dict.fromkeys(SOURCE_KEYS, "digest") for name in DATASETS}
    write_run(folder / "run", parts, about, sources, MMEB)
    Started.now("eval.mmeb", ["--subset_name", *DATASETS]).record(folder / "run", torch.device("cpu"), 7, DATASETS)
    (folder / "run/checkpoint-7").mkdir()
    write_json(folder / "run/best.json", with_checksum({"checkpoint": "checkpoint-7", "score": 0.125}))


def read_all(folder: Path) -> Any:
    """Reads everything in such a folder, as values that can be compared."""
    summary = read_scores(folder)
    run = Run("run", summary)
    misses = Gallery(folder, summary, None)
    return (
        *(summary, score_table([run]), metrics_table([run]), Comparison([run]).notes(), read_card_scores(folder)),
        *(misses.worst(name, 20) for name in DATASETS),
        read_best(folder),
        describe_calls(read_invocations(folder)),
    )


def damage_json(path: Path, dice: random.Random) -> None:
    """Replaces, removes or renames one value."""
    content = json.loads(path.read_text())
    place, key = content, dice.choice(list(content))
    while isinstance(place[key], (dict, list)) and place[key] and dice.random() < 0.9:
        place = place[key]
        key = dice.choice(list(place) if isinstance(place, dict) else range(len(place)))
    action = dice.randrange(4)
    if action == 0:
        del place[key]
    elif action == 1 and isinstance(place, dict):
        place[f"{key}_"] = place.pop(key)
    elif action == 2 and isinstance(place[key], (int, float)):
        place[key] *= dice.choice((-1, 0, 2, 1.0001))
    else:
        place[key] = dice.choice(JUNK)
    path.write_text(json.dumps(content))


def damage_bytes(path: Path, dice: random.Random) -> None:
    """Changes some bytes, or cuts the file."""
    data = bytearray(path.read_bytes())
    if dice.random() < 0.2:
        del data[dice.randrange(len(data)) :]
    else:
        for _ in range(dice.choice((1, 1, 8))):
            data[dice.randrange(len(data))] = dice.randrange(256)
    path.write_bytes(bytes(data))


def damage_table(path: Path, dice: random.Random) -> None:
    """Changes a column, a type or the order of rows, and writes an intact parquet file."""
    table = pq.read_table(path)
    name = dice.choice(table.column_names)
    column, place = table[name], table.column_names.index(name)
    action = dice.randrange(5)
    if action == 0:
        table = table.drop_columns([name])
    elif action == 1:
        table = table.set_column(place, name, pa.nulls(len(table), column.type))
    elif action == 2:
        table = table.set_column(place, name, pa.array([str(value) for value in column.to_pylist()]))
    elif action == 3:
        table = table.append_column(name, column)
    else:
        table = table.slice(0, dice.randrange(len(table)))
    pq.write_table(table, path)


OPERATORS: dict[str, tuple[str, Callable[[Path, random.Random], None]]] = {
    "values of scores.json": ("scores.json", damage_json),
    "bytes of scores.json": ("scores.json", damage_bytes),
    "bytes of predictions.parquet": ("predictions.parquet", damage_bytes),
    "columns of predictions.parquet": ("predictions.parquet", damage_table),
    "values of best.json": ("best.json", damage_json),
    "bytes of best.json": ("best.json", damage_bytes),
    f"values of {CALLS_FILE}": (CALLS_FILE, damage_json),
    f"bytes of {CALLS_FILE}": (CALLS_FILE, damage_bytes),
}


def run(work: Path, mutations: int, seed: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Damages a folder `mutations` times.

    Returns:
        The count of each (operator, outcome), and the failures.
    """
    make_run(work)
    folder = work / "run"
    expected, dice = repr(read_all(folder)), random.Random(seed)
    outcomes: Counter[tuple[str, str]] = Counter()
    failures = []
    for number in range(mutations):
        operator = list(OPERATORS)[number % len(OPERATORS)]
        name, damage = OPERATORS[operator]
        whole = (folder / name).read_bytes()
        damage(folder / name, dice)
        try:
            outcome = "read" if repr(read_all(folder)) == expected else "OTHER VALUES"
        except InputError as error:
            outcome = "refused" if "\n" not in str(error) else "SEVERAL LINES"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"[:200]
        if outcome not in ("read", "refused"):
            failures.append(f"{operator}, mutation {number}: {outcome}")
        outcomes[operator, outcome] += 1
        (folder / name).write_bytes(whole)
    return outcomes, failures


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="python -m trials.fuzz_results",
        description=first_line(__doc__),
        examples=("python -m trials.fuzz_results --mutations 100",),
    )
    made.add_argument("--mutations", type=int, default=600, help="Number of damaged files.")
    made.add_argument("--seed", type=int, default=0, help="Seed of the random choices.")
    return made


def main() -> int:
    """Parses the command line, damages, prints the counts of outcomes."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as work:
        outcomes, failures = run(Path(work), options.mutations, options.seed)
    for (operator, outcome), count in sorted(outcomes.items()):
        print(f"{operator}: {outcome}: {count}")
    print(*failures, sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(run_program(main))
