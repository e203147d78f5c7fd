"""MTEB scores an exported folder on its own collection, offline, with the vectors of `VLM2Vec.encode`."""

from __future__ import annotations

import importlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.mini.slides import SLIDES
from data_prep.mini_mmeb import VISDOC_FOLDER
from tests.rig.comparing import assert_close_relative
from tests.test_examples import run_example
from tests.test_help import faults
from trials.rig.hand_made_collection import Rows, png, write_beir_collection
from vlm2vec import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.export.companions import write_companions

mteb = pytest.importorskip("mteb")
pytestmark = pytest.mark.numeric

QUERY, DOCUMENT = "Find an image: {text}\n", "<|image_1|>\nRepresent the given image.\n"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, without a network."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return importlib.import_module("examples.mteb_eval")


def test_the_miniatures_slides(
    example: Any, mini_mmeb_dir: Path, mini_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, model = mini_mmeb_dir / VISDOC_FOLDER / SLIDES, tmp_path / "model"
    shutil.copytree(mini_model_dir, model)
    write_companions(model)
    kept = example.evaluate

    def evaluate(*arguments: Any) -> Any:
        return kept(*arguments, predictions=tmp_path / "predictions")

    monkeypatch.setattr(example, "evaluate", evaluate)
    flags = ["--model_name", str(model), "--collection", str(collection), "--output", str(tmp_path / "scores.json")]
    monkeypatch.setattr("sys.argv", ["x", *flags, "--query_instruction", QUERY, "--document_instruction", DOCUMENT])
    example.main()
    assert list(faults(example.parser())) == []

    encoder = VLM2Vec.from_pretrained(model)
    rows = {part: pq.read_table(collection / part).to_pylist() for part in ("queries", "corpus", "qrels")}
    pages = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows["corpus"]]
    queries = encoder.encode_queries([row["query"] for row in rows["queries"]], instruction=QUERY)
    expected = encoder.similarity(queries, encoder.encode([DOCUMENT] * len(pages), pages)).numpy()
    found = json.loads((tmp_path / f"predictions/{SLIDES}_predictions.json").read_text())["default"]["test"]
    scores = np.array(
        [[found[str(query["query-id"])][page["corpus-id"]] for page in rows["corpus"]] for query in rows["queries"]]
    )
    assert_close_relative(scores, expected, 5e-6)

    grades = np.zeros_like(expected)
    for row in rows["qrels"]:
        place = [query["query-id"] for query in rows["queries"]].index(row["query-id"])
        grades[place, [page["corpus-id"] for page in rows["corpus"]].index(row["corpus-id"])] = row["score"]
    ranked = np.take_along_axis(grades, np.argsort(-expected, axis=1, kind="stable"), axis=1)[:, :5]
    discounts = 1 / np.log2(np.arange(2, 7))
    ndcg = (ranked @ discounts / (np.sort(grades, axis=1)[:, ::-1][:, :5] @ discounts)).mean()
    written = json.loads((tmp_path / "scores.json").read_text())[SLIDES]
    assert written["ndcg_at_5"] == pytest.approx(ndcg, abs=1e-5)  # MTEB rounds to five digits


def test_a_collection_of_texts_and_images(example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    queries: Rows = [{"_id": "q", "text": "what", "image": "a.png"}]
    corpus: Rows = [{"_id": "d1", "title": "One", "text": "page"}, {"_id": "d2", "title": "", "text": "another"}]
    qrels: Rows = [{"query-id": "q", "corpus-id": "d2", "score": 1}, {"query-id": "q", "corpus-id": "d1", "score": 0}]
    task = example.local_task(write_beir_collection(tmp_path, queries, corpus, qrels), "test")
    task.load_data()
    assert task.corpus["test"]["text"][:] == ["One page", "another"]
    assert task.queries["test"][0]["image"].size == (24, 32)
    assert task.relevant_docs == {"test": {"q": {"d2": 1}}}
    assert task.metadata.category == "it2t"
    doubled: tuple[tuple[Rows, Rows, str], ...] = (
        ([corpus[0], corpus[0]], qrels, "the id 'd1' of corpus occurs twice"),
        (corpus, qrels[1:], "no query has a relevant document"),
        (corpus, [{**qrels[0], "score": "high"}], "test.tsv line 2: expected query-id, corpus-id and an integer score"),
    )
    for documents, judged, reason in doubled:
        with pytest.raises(InputError, match=reason):
            example.local_task(write_beir_collection(tmp_path, queries, documents, judged), "test")
    example.local_task(write_beir_collection(tmp_path, [*queries, {**queries[0], "_id": "r"}], corpus, qrels), "test")
    assert "1 queries without a relevant document are left out" in capsys.readouterr().err
    for bad, said in (("../a.png", "must be relative"), ("b.png", "no such image"), (None, "'r' of queries has no")):
        rows: Rows = [*queries, {"_id": "r", "text": "what", "image": bad}]
        with pytest.raises(InputError, match=said):
            example.local_task(write_beir_collection(tmp_path, rows, corpus, qrels), "test")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tasks", "x", "--split", "dev"], "--split is for --collection"),
        (["--collection", "/nowhere"], "no modules.json; vlm2vec.export writes"),
    ],
)
def test_bad_flags(
    flags: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_example(monkeypatch, "--model_name", str(tmp_path), *flags, name="mteb_eval.py") == 2
    assert said in capsys.readouterr().err
