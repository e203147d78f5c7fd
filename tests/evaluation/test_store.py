from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest

from trials.rig.damage import OPERATORS
from trials.rig.forgery import forge_json
from trials.rig.hand_made_eval import read, row, write_dataset
from vlm2vec import files
from vlm2vec.errors import InputError
from vlm2vec.evaluation.data.datasets import EvalData
from vlm2vec.evaluation.encoding_plan import EncodingPlan
from vlm2vec.evaluation.store import EvalStore

TRIALS = 100
VECTORS = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> EvalStore:
    """Four items in two batches, one block a batch."""
    rows, items = read(write_dataset(tmp_path, "D", [row("q1", ["a", "b"]), row("q2", ["b", "a"])]))
    order = np.array([2, 0, 3, 1], np.int32)
    bounds, costs = np.array([0, 2, 4], np.int64), np.array([6, 4], np.int64)
    plan = EncodingPlan(order, np.argsort(order).astype(np.int32), bounds, 0, costs, "0" * 64)
    made = EvalStore(tmp_path / "store")
    made.write_data(EvalData(tuple(rows), items, None), plan)
    for number in (0, 1):
        made.write_block(number, VECTORS[2 * number : 2 * number + 2])
    return made


def everything(store: EvalStore) -> list[object]:
    """What is read of the folder, comparable."""
    plan, rows, items = store.plan(), store.rows(0), store.items()
    return [
        *(value.tolist() if isinstance(value, np.ndarray) else value for value in dataclasses.astuple(plan)),
        *(value.tolist() if isinstance(value, np.ndarray) else value for value in dataclasses.astuple(rows)),
        [(items.text(index), items.image(index), items.use(index)) for index in range(len(items))],
    ]


def outcome(store: EvalStore) -> tuple[list[object], str | None]:
    """What is read, or the error's message."""
    try:
        return everything(store), None
    except InputError as error:
        return [], str(error)


@pytest.mark.parametrize("file", ["about.json", "items.arrow", "plan.npz", "rows-00000.npz"])
def test_a_damaged_file_is_refused_in_one_line_or_read_as_it_was(file: str, store: EvalStore) -> None:
    undamaged, path = everything(store), store.folder / file
    content, refused = path.read_bytes(), 0
    for trial in range(TRIALS):
        generator = random.Random(f"{file}-{trial}")
        if file == "about.json" and trial % 2:
            path.write_text(json.dumps(forge_json(json.loads(content), generator)))
        elif file != "items.arrow" or trial % 2:  # an Arrow file has no checksums: flipped letters stay unseen
            operator = generator.choice([name for name in OPERATORS if name != "bits flipped"])
            path.write_bytes(OPERATORS[operator](bytearray(content), generator, b"{}"))
        else:
            path.write_bytes(OPERATORS["truncated"](bytearray(content), generator, b""))
        found, message = outcome(store)
        if message is None:
            assert found == undamaged or not file.endswith(".npz")
        else:
            refused += 1
            assert str(store.folder) in message
            assert "\n" not in message
    assert refused > TRIALS // 3


def test_a_damaged_block_is_named_and_encoded_again(store: EvalStore) -> None:
    block = store.folder / "blocks/block-00001.npy"
    content = block.read_bytes()
    for damaged in (content[:-4], content[:60], b"", content.replace(b"(2, 8)", b"(2, 9)")):
        block.write_bytes(damaged)
        with pytest.raises(InputError, match=r"block-00001\.npy: cannot be read"):
            store.assemble(store.plan())
        assert store.missing_blocks(store.plan()) == [1]
    store.write_block(1, VECTORS[2:])
    store.assemble(store.plan())
    assert np.array_equal(store.vectors(), VECTORS)
    (store.folder / "vectors.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match=r"vectors\.npy: cannot be read"):
        store.vectors()


def test_only_what_a_restart_keeps_waits_for_the_disk(store: EvalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items and rows are written by every start, and a damaged block is encoded again; the joined vectors must stay."""
    synced: list[str] = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append(path.name))
    rows, items = store.rows(0), store.items()
    store.write_data(EvalData((rows,), items, None), store.plan())
    assert not any(name.endswith((".arrow", "about.json", "rows-00000.npz")) for name in synced)
    store.write_block(0, VECTORS[:2])
    assert not any(name.endswith(".npy") for name in synced)
    store.assemble(store.plan())
    assert any(name.endswith("vectors.npy") for name in synced)
    assert not list(store.folder.rglob(f"{files.TEMPORARY_PREFIX}*"))
