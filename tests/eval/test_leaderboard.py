"""The leaderboard's file: merging runs, means over the available scores, and refused combinations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval import leaderboard
from eval.retrieval_results import RETRIEVAL_FILE
from tests.eval.test_report import MODEL, scores_of
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import with_checksum
from vlm2vec.mmeb_v2 import VISDOC_METRIC


def write_scores(folder: Path, accs: dict[str, float], fingerprint: str = str(MODEL["fingerprint"])) -> Path:
    """A run of eval.mmeb."""
    folder.mkdir(parents=True)
    summary = scores_of(accs, None)
    summary["model"] = {**MODEL, "fingerprint": fingerprint}
    (folder / "scores.json").write_text(json.dumps({"benchmark": None, **summary}))
    return folder


def write_retrieval(
    folder: Path, values: dict[str, tuple[float, float]], score_file: dict[str, Any] | None = None
) -> Path:
    """A run of eval.retrieval, of which each collection has (nDCG@5, hit@1)."""
    folder.mkdir(parents=True)
    collections = {}
    for name, (ndcg, hit) in values.items():
        means = {VISDOC_METRIC: ndcg, "hit@1": hit}
        metrics = {metric: {"mean": mean, "interval": [0.0, 1.0]} for metric, mean in means.items()}
        collections[name] = {"group": None, "num_queries": 4, "num_documents": 9, "metrics": metrics}
        score = {**means, "mrr@10": 0.5, "num_pred": 4, "num_data": 4, **(score_file or {})}
        (folder / f"{name}_score.json").write_text(json.dumps(score))
    summary = {"collections": collections, "groups": {}, "model": MODEL, "warnings": []}
    (folder / RETRIEVAL_FILE).write_text(json.dumps(with_checksum(summary)))
    return folder


def flags(output: Path, *runs: Path) -> list[str]:
    return [*map(str, runs), "--model_name", "mine", "--output", str(output)]


def test_runs_of_all_modalities_become_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scores(tmp_path / "run/image", {"GQA": 0.5, "ImageNet-1K": 0.75, "My own": 0.9})
    write_retrieval(tmp_path / "run/visdoc", {"ViDoRe_docvqa": (0.25, 0.125), "slides": (0.5, 0.5)})
    clips = write_scores(tmp_path / "clips", {"K700": 0.25})
    search = write_retrieval(tmp_path / "search", {"MSR-VTT": (0.75, 0.5)})
    output = tmp_path / "new/mine.json"
    more = ["--model_size", "2.21", "--embedding_dimension", "1536", "--model_release_date", "2026-11-01"]
    leaderboard.main([*flags(output, tmp_path / "run", clips, search), *more, "--url", "https://example.org"])
    written = json.loads(output.read_text())
    metadata = written["metadata"]
    assert metadata.pop("report_generated_date").startswith("20")
    assert metadata == {
        **{"model_name": "mine", "model_backbone": None, "model_size": 2.21, "embedding_dimension": 1536},
        **{"max_length_tokens": None, "model_release_date": "2026-11-01", "data_source": "Self-Reported"},
        "url": "https://example.org",
    }
    metrics = written["metrics"]
    assert {modality: len(sets) for modality, sets in metrics.items()} == {"image": 36, "visdoc": 24, "video": 18}
    assert metrics["image"]["GQA"] == {
        **dict.fromkeys(("hit@1", "hit@5", "hit@10", "ndcg_linear@10", "ndcg_exponential@10"), 0.5),
        **dict.fromkeys(("num_pred", "num_data"), 1000),
    }
    score = json.loads((tmp_path / "run/visdoc/ViDoRe_docvqa_score.json").read_text())
    assert metrics["visdoc"]["ViDoRe_docvqa"] == score
    assert (metrics["video"]["K700"]["hit@1"], metrics["video"]["MSR-VTT"]["hit@1"]) == (0.25, 0.5)
    missing = [value for sets in metrics.values() for value in sets.values() if value == "FILE_N/A"]
    assert len(missing) == 78 - 5
    shown = capsys.readouterr().out
    assert "image (hit@1): 62.5 %, 2 of 36 datasets" in shown
    assert "visdoc (ndcg_linear@5): 25.0 %, 1 of 24 datasets" in shown
    assert "video (hit@1): 37.5 %, 2 of 18 datasets" in shown
    assert "all (of each modality): 45.0 %, 5 of 78 datasets" in shown
    assert "left out: 2 datasets that MMEB-V2 does not have: My own, slides" in shown


def test_a_modality_without_sets_has_no_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaderboard.main(flags(tmp_path / "out.json", write_scores(tmp_path / "a", {"GQA": 0.5})))
    assert "video (hit@1): no scores, 0 of 18 datasets" in capsys.readouterr().out


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    first = write_scores(tmp_path / "first", {"GQA": 0.5})
    own = write_scores(tmp_path / "own", {"My own": 0.5})
    changed = write_retrieval(tmp_path / "changed", {"ViDoSeek-doc": (0.5, 0.5)}, {VISDOC_METRIC: 0.9})
    (tmp_path / "empty").mkdir()
    cases = {
        "twice: GQA is also in": (first, write_scores(tmp_path / "twice", {"GQA": 0.6})),
        "scores of a different model than": (first, write_scores(tmp_path / "other", {"CIRR": 0.5}, "f" * 16)),
        "score it with eval.retrieval": (write_scores(tmp_path / "pages", {"ViDoRe_docvqa": 0.5}),),
        "score it with eval.mmeb": (write_retrieval(tmp_path / "searched", {"GQA": (0.5, 0.5)}),),
        "ndcg_linear@5 differs from retrieval.json": (changed,),
        "none of MMEB-V2's datasets is in these runs, only My own": (own,),
        "empty: no scores": (first, tmp_path / "empty"),
        "gone: no such folder": (tmp_path / "gone",),
    }
    for message, runs in cases.items():
        with pytest.raises(InputError, match=message):
            leaderboard.main(flags(output, *runs))
    assert not output.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--model_release_date", "1 May"],
        ["--model_size", "nan"],
        ["--embedding_dimension", "0"],
        ["--max_length_tokens", "1.5"],
    ],
)
def test_impossible_metadata_is_refused(wrong: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=wrong[0]):
        leaderboard.main([*flags(tmp_path / "out.json", tmp_path), *wrong])
