"""The retrieval program: with chosen vectors, with a model, on several ranks and after a kill."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.mini.slides import SLIDES
from data_prep.mini_mmeb import VISDOC_FOLDER
from eval import leaderboard, mmeb, report, retrieval
from eval.invocation import CALLS_FILE
from eval.retrieval_results import RETRIEVAL_FILE
from tests.eval import dying_searcher
from tests.eval.test_page import predictions_of
from tests.eval.test_report import scores_of
from trials.rig.forked import ended, start_forked
from trials.rig.hand_made_collection import Rows, png, write_beir_collection, write_parquet_collection
from trials.rig.hand_made_eval import row as hand_made_row
from trials.rig.hand_made_eval import write_dataset
from trials.rig.launcher import free_port
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.evaluation.retrieval import nearest, ranking
from vlm2vec.evaluation.store import EvalStore
from vlm2vec.formats.json_files import without_checksum
from vlm2vec.mmeb_v2 import PAGE_INSTRUCTION, QUERY_INSTRUCTION

Choose = Callable[[dict[str, list[float]]], list[str]]
SIGKILL_EXIT = -9

QUERIES: Rows = [{"_id": "east", "text": "east"}, {"_id": "north", "text": "north"}, {"_id": "none", "text": "what"}]
CORPUS: Rows = [
    {"_id": "d1", "title": "", "text": "due east"},
    {"_id": "d2", "title": "nearly", "text": "east"},
    {"_id": "d3", "title": "", "text": "due north"},
]
QRELS: Rows = [
    {"query-id": "east", "corpus-id": "d2", "score": 2},
    {"query-id": "east", "corpus-id": "d1", "score": 1},
    {"query-id": "north", "corpus-id": "gone", "score": 1},
    {"query-id": "north", "corpus-id": "d3", "score": 1},
    {"query-id": "none", "corpus-id": "d1", "score": 0},
    {"query-id": "other", "corpus-id": "d1", "score": 1},
]
VECTORS = {
    **{"east": [1.0, 0.0], "north": [0.0, 1.0], "what": [1.0, 0.0]},
    **{"due east": [1.0, 0.0], "nearly east": [0.8, 0.6], "due north": [0.0, 1.0]},
}


@pytest.fixture
def options(tmp_path: Path, mini_model_dir: Path) -> list[str]:
    return [
        *("--model_name", str(mini_model_dir), "--dataset_name", str(tmp_path / "data")),
        *("--encode_output_path", str(tmp_path / "out"), "--dataloader_num_workers", "0"),
    ]


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Choose:
    """Puts vectors by text in the encoder's place; gives the list of texts that it is asked for."""
    asked: list[str] = []

    def install(vectors: dict[str, list[float]]) -> list[str]:
        def encode(setup: Any, store: EvalStore, *_: Any) -> None:
            plan, items = store.plan(), store.items()
            for number in setup.blocks:
                texts = [items.text(plan.order[each]) for batch in plan.blocks()[number] for each in plan.rows(batch)]
                asked.extend(texts)
                store.write_block(number, np.asarray([vectors[text] for text in texts], dtype=np.float32))

        monkeypatch.setattr(retrieval, "encode", encode)
        return asked

    return install


def summary_of(folder: Path) -> dict[str, Any]:
    path = folder / RETRIEVAL_FILE
    return without_checksum(json.loads(path.read_text()), path)


def test_metrics_lists_and_score_files_of_a_collection_made_by_hand(
    options: list[str], choose: Choose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_beir_collection(tmp_path / "data", QUERIES, CORPUS, QRELS)
    asked = choose(VECTORS)
    retrieval.main(options)
    assert sorted(asked) == sorted(VECTORS)
    output = tmp_path / "out"
    lines = [line.split() for line in (output / "data.trec").read_text().splitlines()]
    assert [(line[0], line[2], line[3]) for line in lines] == [
        *(("east", "d1", "1"), ("east", "d2", "2"), ("east", "d3", "3")),
        *(("north", "d3", "1"), ("north", "d2", "2"), ("north", "d1", "3")),
    ]
    metrics = summary_of(output)["collections"]["data"]["metrics"]
    east = (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))
    north = 1 / (1 + 1 / np.log2(3))  # the other relevant document is not in the corpus: it counts as not found
    assert metrics["ndcg_linear@5"]["mean"] == pytest.approx((east + north) / 2, rel=1e-6)
    assert metrics["recall@5"]["mean"] == pytest.approx(0.75)
    assert metrics["hit@1"]["mean"] == 1.0
    scores = json.loads((output / "data_score.json").read_text())
    assert scores["num_pred"] == 2
    assert scores["ndcg_linear@5"] == metrics["ndcg_linear@5"]["mean"]
    printed = capsys.readouterr().out
    assert "warning: data: 1 queries without a relevant document are left out" in printed
    assert "warning: data: 1 judgements of queries that are not scored are left out" in printed
    assert "warning: data: 1 judgements name documents that are not in the corpus" in printed
    assert "data: ndcg_linear@5" in printed


def test_the_run_file_scores_the_same_under_trec_eval(options: list[str], choose: Choose, tmp_path: Path) -> None:
    trec = pytest.importorskip("pytrec_eval")
    write_beir_collection(tmp_path / "data", QUERIES, CORPUS, QRELS)
    choose(VECTORS)
    retrieval.main(options)
    run: dict[str, dict[str, float]] = {}
    for line in (tmp_path / "out/data.trec").read_text().splitlines():
        query, _, document, _, score, _ = line.split()
        run.setdefault(query, {})[document] = float(score)
    qrels: dict[str, dict[str, int]] = {}
    for judgement in QRELS:
        qrels.setdefault(judgement["query-id"], {})[judgement["corpus-id"]] = judgement["score"]
    judged = {query: qrels[query] for query in ("east", "north")}
    expected = trec.RelevanceEvaluator(judged, {"ndcg_cut.5", "recall.5", "map_cut.100"}).evaluate(run)
    metrics = summary_of(tmp_path / "out")["collections"]["data"]["metrics"]
    for ours, theirs in (("ndcg_linear@5", "ndcg_cut_5"), ("recall@5", "recall_5"), ("map@100", "map_cut_100")):
        assert metrics[ours]["mean"] == pytest.approx(np.mean([each[theirs] for each in expected.values()]), rel=1e-6)


def test_every_form_gives_the_same_lists(options: list[str], choose: Choose, tmp_path: Path) -> None:
    write_beir_collection(tmp_path / "data/beir", QUERIES, CORPUS, QRELS)
    write_parquet_collection(tmp_path / "data/hub", QUERIES, CORPUS, QRELS)
    named = [[{"corpus-id": row["_id"], **row} for row in CORPUS], [{"query-id": 7, "query": "east"}]]
    write_parquet_collection(tmp_path / "data/hub/data", [], [], [])  # not looked at: the parts above come first
    write_parquet_collection(
        tmp_path / "data/numbers/data", named[1], named[0], [{"query-id": 7, "corpus-id": "d2", "score": 1.0}]
    )
    choose(VECTORS)
    retrieval.main(options)
    beir, hub = ((tmp_path / f"out/{name}.trec").read_text() for name in ("beir", "hub"))
    assert beir == hub
    assert (tmp_path / "out/numbers.trec").read_text().splitlines()[0].split()[:4] == ["7", "Q0", "d1", "1"]


def test_the_documents_own_id_can_be_skipped(options: list[str], choose: Choose, tmp_path: Path) -> None:
    corpus = [{"_id": "east", "text": "due east"}, *CORPUS[1:]]
    write_beir_collection(tmp_path / "data", QUERIES, corpus, QRELS)
    choose(VECTORS)
    retrieval.main([*options, "--skip_own_id", "True"])
    lines = [line.split() for line in (tmp_path / "out/data.trec").read_text().splitlines()]
    assert [line[2] for line in lines if line[0] == "east"] == ["d2", "d3"]
    assert [line[2] for line in lines if line[0] == "north"] == ["d3", "d2", "east"]


def visual_collection(folder: Path, num_pages: int = 14, as_paths: bool = False) -> Path:
    """One of MMEB-V2's sets with few pages."""
    pages: list[dict[str, Any]] = []
    for number in range(num_pages):
        image: Any = {"bytes": png(number), "path": f"{number}.png"}
        if as_paths:
            (folder / "pages").mkdir(parents=True, exist_ok=True)
            (folder / f"pages/{number}.png").write_bytes(png(number))
            image = f"pages/{number}.png"
        pages.append({"corpus-id": number, "image": image})
    queries = [{"query-id": number, "query": f"page {number}"} for number in range(num_pages)]
    qrels = [{"query-id": number, "corpus-id": number, "score": 1} for number in range(num_pages)]
    return write_parquet_collection(folder, queries, pages, qrels)


def test_visual_documents_have_their_instructions_and_the_vectors_of_encode(
    options: list[str], mini_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    visual_collection(tmp_path / "data/docvqa_test_subsampled_beir")
    visual_collection(tmp_path / "data/as_paths", as_paths=True)
    retrieval.main([*options, "--subset_name", "ViDoRe-V1"])
    assert "ViDoRe-V1 (mean of 1 of 10): ndcg_linear@5" in capsys.readouterr().out
    retrieval.main([*options, "--subset_name", "as_paths", "--query_instruction", QUERY_INSTRUCTION,
                    "--document_instruction", PAGE_INSTRUCTION])  # fmt: skip
    lists = [(tmp_path / f"out/{name}.trec").read_text() for name in ("ViDoRe_docvqa", "as_paths")]
    assert lists[0] == lists[1]
    encoder = VLM2Vec.from_pretrained(mini_model_dir)
    query = encoder.encode(texts=[f"{QUERY_INSTRUCTION} page 3"])
    page = encoder.encode(texts=[f"<|image_1|> {PAGE_INSTRUCTION}"], images=[tmp_path / "data/as_paths/pages/5.png"])
    line = next(line for line in lists[0].splitlines() if line.split()[0] == "3" and line.split()[2] == "5")
    assert float(line.split()[4]) == pytest.approx(float((query @ page.T).item()), rel=1e-5, abs=1e-6)


def test_two_ranks_give_the_same_files_and_a_killed_run_is_continued(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visual_collection(tmp_path / "data/pages")
    bare = [word for word in options if word not in ("--encode_output_path", str(tmp_path / "out"))]
    codes = ended(start_forked(2, dying_searcher.main, [str(tmp_path), str(free_port()), *bare], tmp_path))
    assert codes == [SIGKILL_EXIT] * 2, (tmp_path / "rank0.log").read_text()
    torn = tmp_path / "torn"
    assert len(list(torn.rglob("ranked-*.npz"))) == 2
    assert not (torn / RETRIEVAL_FILE).exists()
    monkeypatch.setattr(nearest, "QUERY_BLOCK", dying_searcher.QUERY_BLOCK)
    ranked: list[Any] = []
    write = ranking.RankedBlocks._write
    monkeypatch.setattr(ranking.RankedBlocks, "_write", lambda *each: (ranked.append(each), write(*each)))
    retrieval.main([*bare, "--encode_output_path", str(torn)])
    assert len(ranked) == 2  # of four blocks
    retrieval.main([*bare, "--encode_output_path", str(tmp_path / "alone")])
    files = [
        {
            str(path.relative_to(each)): path.read_bytes()
            for path in each.rglob("*")
            if path.is_file() and path.name != CALLS_FILE
        }
        for each in (tmp_path / "whole", torn, tmp_path / "alone")
    ]
    assert files[0].keys() == files[1].keys() == files[2].keys()
    for name, content in files[0].items():
        if not name.endswith(".npz"):  # zip files hold times
            assert files[1][name] == content, name
            assert files[2][name] == content, name


def test_whole_texts_and_the_slides_of_the_miniature(
    options: list[str], mini_model_dir: Path, mini_mmeb_dir: Path
) -> None:
    """Queries and documents under the very texts of training, which end with a newline."""
    texts = ("Find an image: {text}\n", "<|image_1|>\nRepresent the given image.\n")
    flags = ("--query_instruction", texts[0], "--document_instruction", texts[1])
    retrieval.main([*options, "--dataset_name", str(mini_mmeb_dir / VISDOC_FOLDER), *flags])
    output = Path(options[options.index("--encode_output_path") + 1])
    slides = pq.read_table(mini_mmeb_dir / VISDOC_FOLDER / SLIDES / "corpus").to_pylist()
    queries = pq.read_table(mini_mmeb_dir / VISDOC_FOLDER / SLIDES / "queries").to_pylist()
    assert len(slides) == 90
    found = [line.split() for line in (output / f"{SLIDES}.trec").read_text().splitlines()]
    assert len(found) == 90 * len(queries)
    line = found[0]
    image = next(each["image"]["bytes"] for each in slides if each["corpus-id"] == line[2])
    encoder = VLM2Vec.from_pretrained(mini_model_dir)
    query = encoder.encode(texts=[texts[0].replace("{text}", queries[int(line[0])]["query"])])
    slide = encoder.encode(texts=[texts[1]], images=[image])
    assert float(line[4]) == pytest.approx(float((query @ slide.T).item()), rel=1e-5, abs=1e-6)


def write_clip(folder: Path, number: int, num_frames: int) -> None:
    """A clip's folder: frames 2 and 10 are not in the order of their names."""
    folder.mkdir(parents=True)
    for frame in range(num_frames):
        (folder / f"frame_{frame}.jpg").write_bytes(png(10 * number + frame))
    (folder / "notes.txt").write_text("no frame")


def test_clips_are_items_of_several_images(options: list[str], mini_model_dir: Path, tmp_path: Path) -> None:
    """The same clips in a corpus and among a row's candidates: the vectors of `encode` with the sampled frames."""
    for number, num_frames in enumerate((12, 2, 3)):
        write_clip(tmp_path / f"clips/v{number}", number, num_frames)
    corpus = [{"_id": f"v{number}", "image": f"v{number}"} for number in range(3)]
    qrels = [{"query-id": "east", "corpus-id": "v0", "score": 1}]
    write_beir_collection(tmp_path / "data/clips", QUERIES[:1], corpus, qrels)
    texts = ("Find a clip:", "Understand the clip.")
    flags = [
        *("--image_dir", str(tmp_path / "clips"), "--query_instruction", texts[0]),
        "--document_instruction",
        texts[1],
    ]
    with pytest.raises(InputError, match=r"corpus.jsonl line 1: .*v0: not a regular file \(a folder; where a number"):
        retrieval.main([*options, *flags])
    retrieval.main([*options, *flags, "--num_frames", "3"])
    found = {line.split()[2]: float(line.split()[4]) for line in (tmp_path / "out/clips.trec").read_text().splitlines()}
    encoder = VLM2Vec.from_pretrained(mini_model_dir)
    query = encoder.encode(texts=[f"{texts[0]} east"])
    frames = [[f"clips/v0/frame_{frame}.jpg" for frame in (0, 5, 11)]]
    frames += [
        [f"clips/v1/frame_{frame}.jpg" for frame in (0, 1)],
        [f"clips/v2/frame_{frame}.jpg" for frame in range(3)],
    ]
    for number, names in enumerate(frames):
        tags = "".join(f"<|image_{image}|>" for image in range(1, len(names) + 1))
        clip = encoder.encode(texts=[f"{tags} {texts[1]}"], images=[[tmp_path / name for name in names]])
        assert found[f"v{number}"] == pytest.approx(float((query @ clip.T).item()), rel=1e-5, abs=1e-6)
    rows = [hand_made_row(f"{texts[0]} east", [f"<|image_1|> {texts[1]}"] * 3, images=["v0", "v1", "v2"])]
    write_dataset(tmp_path / "rows", "MSVD", rows)
    mmeb.main([*options, "--dataset_name", str(tmp_path / "rows"), "--image_dir", str(tmp_path / "clips"),
               "--encode_output_path", str(tmp_path / "scores"), "--num_frames", "3"])  # fmt: skip
    ranked = pq.read_table(tmp_path / "scores/predictions.parquet").to_pylist()[0]
    assert ranked["top_score"][:3] == pytest.approx(sorted(found.values(), reverse=True), rel=1e-5, abs=1e-6)
    report.main([str(tmp_path / "scores"), "--image_dir", str(tmp_path / "clips")])


def test_the_report_shows_retrieval_beside_images_or_alone(
    options: list[str], choose: Choose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    visual_collection(tmp_path / "data/docvqa_test_subsampled_beir", num_pages=4)
    texts = {f"{QUERY_INSTRUCTION} page {number}": [1.0, number / 10] for number in range(4)}
    choose({**texts, f"<|image_1|> {PAGE_INSTRUCTION}": [1.0, 0.2]})
    retrieval.main([*options, "--encode_output_path", str(tmp_path / "run/visdoc")])
    report.main([str(tmp_path / "run/visdoc")])
    alone = (tmp_path / "run/visdoc/report.md").read_text()
    assert "| collection | queries | documents | visdoc |" in alone
    assert "| ViDoRe_docvqa | 4 | 4 |" in alone
    (tmp_path / "run/image").mkdir()
    (tmp_path / "run/image/scores.json").write_text(json.dumps(scores_of({"GQA": 0.5})))
    rows = [hand_made_row("which?", ["truth", "chosen"])]
    table = predictions_of("GQA", rows, [True], tmp_path / "own")
    pq.write_table(table, tmp_path / "run/image/predictions.parquet")
    (tmp_path / "run/video").mkdir()
    (tmp_path / "run/video/scores.json").write_text(json.dumps(scores_of({"MSVD": 0.25}, None)))
    capsys.readouterr()
    report.main([str(tmp_path / "run")])
    shown, page = capsys.readouterr().out, (tmp_path / "run/report.html").read_text()
    assert "| run | 50.0 | 1 |" in (tmp_path / "run/report.md").read_text()
    assert page.count("python -m eval.retrieval --model_name") == 1
    for text in (shown, page):
        assert "Groups of MMEB-V2" in text
        assert "video, P@1" in text
        assert "MSVD" in text
        assert "ViDoRe_docvqa" in text
        assert "GQA" in text
    lines = list(csv.DictReader((tmp_path / "run/report.csv").open()))
    assert {line["kind"] for line in lines} == {"dataset", "mean", "collection"}
    leaderboard.main([str(tmp_path / "run/visdoc"), "--model_name", "mine", "--output", str(tmp_path / "mine.json")])
    score = json.loads((tmp_path / "run/visdoc/ViDoRe_docvqa_score.json").read_text())
    assert json.loads((tmp_path / "mine.json").read_text())["metrics"]["visdoc"]["ViDoRe_docvqa"] == score
    (tmp_path / f"run/visdoc/{RETRIEVAL_FILE}").write_text('{"collections": {"a": {}}}')
    with pytest.raises(InputError, match=r"retrieval.json: not as python -m eval.retrieval writes it"):
        report.main([str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": [{"_id": "a", "text": ""}]}, r"queries.jsonl line 1: empty"),
        ({"queries": [{"_id": "a", "text": 3}]}, r"queries.jsonl line 1: column text is int, not text"),
        ({"queries": [*QUERIES, QUERIES[0]]}, r"queries.jsonl line 4: id east is also that of .*queries.jsonl line 1"),
        (
            {"queries": [{"text": "x"}]},
            r"queries.jsonl line 1: no id: has none of the columns query-id, .*columns are text",
        ),
        ({"corpus": [{"_id": "d1", "image": "../secret.png"}]}, r"corpus.jsonl line 1: \.\./secret.png: .*'\.\.'"),
        ({"corpus": [{"_id": "d1", "image": "no.png"}]}, r"corpus.jsonl line 1: .*no.png: no such image"),
        ({"corpus": [{"_id": "d1", "image": 5}]}, r"corpus.jsonl line 1: an image is int; expected bytes, a path"),
        (
            {"corpus": [{"_id": "d1", "body": "x"}]},
            r"corpus.jsonl line 1: has neither a text nor an image column; .* _id, body",
        ),
        ({"qrels": [{"query-id": "east", "corpus-id": "d1", "score": "x"}]}, r"test.tsv line 2: column score is 'x'"),
        ({"qrels": [{"query-id": "no", "corpus-id": "d1", "score": 1}]}, r"data: no query has a relevant document"),
    ],
)
def test_bad_rows_are_named_with_file_and_line(
    change: dict[str, Rows], message: str, options: list[str], tmp_path: Path
) -> None:
    parts = {"queries": QUERIES, "corpus": CORPUS, "qrels": QRELS, **change}
    write_beir_collection(tmp_path / "data", parts["queries"], parts["corpus"], parts["qrels"])
    with pytest.raises(InputError, match=message):
        retrieval.main(options)


def test_what_is_missing_is_said(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=r"--dataset_name .*data: no collection: expected queries, corpus and qrels"):
        retrieval.main(options)
    write_beir_collection(tmp_path / "data/mine", QUERIES, CORPUS, QRELS, split="dev")
    with pytest.raises(InputError, match=r"--subset_name yours: no such collection or group there; it has mine"):
        retrieval.main([*options, "--subset_name", "yours"])
    with pytest.raises(InputError, match=r"qrels: no files of split test; there are files of dev"):
        retrieval.main(options)
    (tmp_path / "data/mine/corpus.jsonl").unlink()
    with pytest.raises(InputError, match=r"mine: no corpus: expected corpus.jsonl, corpus.parquet or a folder"):
        retrieval.main([*options, "--dataset_split", "dev"])
    with pytest.raises(InputError, match=r"--top_k 5: must be at least 10"):
        retrieval.main([*options, "--top_k", "5"])
