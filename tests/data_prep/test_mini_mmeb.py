from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from data_prep import mini_mmeb
from data_prep.mini.prompts import IMAGE_TAG, NUM_PARAPHRASES
from data_prep.mini.tasks import TASKS
from data_prep.mini.writer import STRING_TARGET_TEXT
from data_prep.mini_mmeb import build_mini_mmeb
from vlm2vec.errors import InputError, run_program
from vlm2vec.images.decode import open_image
from vlm2vec.mmeb import MINI_MMEB, EvalDataset, TrainSubset

SUBSETS = pytest.mark.parametrize("subset", MINI_MMEB.train_subsets, ids=lambda subset: subset.name)
DATASETS = pytest.mark.parametrize("dataset", MINI_MMEB.eval_datasets, ids=lambda dataset: dataset.name)
TINY_SCALE = 0.001


def train_rows(root: Path, subset: str, split: str = "original") -> list[dict[str, str]]:
    rows: list[dict[str, str]] = pq.read_table(
        root / "MMEB-train" / subset / f"{split}-00000-of-00001.parquet"
    ).to_pylist()
    return rows


def eval_rows(root: Path, dataset: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(root / "MMEB-eval" / dataset / "test-00000-of-00001.parquet").to_pylist()
    return rows


def digests(root: Path, pattern: str = "*") -> dict[str, str]:
    files = [path for path in sorted(root.rglob(pattern)) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def modality(text: str, image: str, instruction: str) -> str:
    """What an item consists of, once its instruction is taken away."""
    words = text.replace(IMAGE_TAG, "").replace(instruction, "").strip(" :\n")
    return "+".join(part for part, there in (("I", image), ("T", words)) if there)


@SUBSETS
def test_train_subsets_have_the_stated_modalities_and_real_images(subset: TrainSubset, mini_mmeb_dir: Path) -> None:
    rows = train_rows(mini_mmeb_dir, subset.name)
    instruction = TASKS[subset.name].prompt.instruction
    target_instruction = re.compile(
        r"Represent the given (cropped )?image( of the object|\.| together with its text: )"
    )
    for row in rows:
        assert modality(row["qry"], row["qry_image_path"], instruction) == subset.query_modality
        stripped = target_instruction.sub("", row["pos_text"])
        assert modality(stripped, row["pos_image_path"], "") == subset.target_modality
        for side in ("qry_image_path", "pos_image_path", "neg_image_path"):
            if row.get(side):
                assert row[side].startswith(f"images/{subset.name}/Train/")
                open_image(mini_mmeb_dir / "MMEB-train" / row[side])
        if "neg_text" in row:
            assert (row["neg_text"], row["neg_image_path"]) != (row["pos_text"], row["pos_image_path"])
            assert row["neg_text"] or row["neg_image_path"]


def test_some_subsets_have_negatives_and_others_no_such_column(mini_mmeb_dir: Path) -> None:
    with_negatives = {s.name for s in MINI_MMEB.train_subsets if "neg_text" in train_rows(mini_mmeb_dir, s.name)[0]}
    assert with_negatives == {name for name, task in TASKS.items() if task.has_negatives}
    assert 0 < len(with_negatives) < len(MINI_MMEB.train_subsets)


def test_tags_are_where_mmeb_has_them(mini_mmeb_dir: Path) -> None:
    assert all(row["qry"].startswith(IMAGE_TAG) for row in train_rows(mini_mmeb_dir, "Digits_10"))
    assert all(IMAGE_TAG not in row["qry"] for row in train_rows(mini_mmeb_dir, "Pairs_t2i"))
    for row in train_rows(mini_mmeb_dir, "WebDigits"):  # the stray tag of WebQA
        assert row["qry"].startswith(IMAGE_TAG)
        assert row["qry_image_path"] == ""


@SUBSETS
def test_diverse_instructions_reword_the_query_only(subset: TrainSubset, mini_mmeb_dir: Path) -> None:
    original = train_rows(mini_mmeb_dir, subset.name)
    diverse = train_rows(mini_mmeb_dir, subset.name, "diverse_instruction")
    for one, other in zip(original, diverse, strict=True):
        assert one["qry"] != other["qry"]
        assert one["qry"].count(IMAGE_TAG) == other["qry"].count(IMAGE_TAG)
        assert {k: v for k, v in one.items() if k != "qry"} == {k: v for k, v in other.items() if k != "qry"}
    openings = {row["qry"].split(":")[0] for row in diverse}
    assert len(openings) == NUM_PARAPHRASES
    if TASKS[subset.name].prompt.image_tag:
        assert any(not row["qry"].startswith(IMAGE_TAG) for row in diverse)


@DATASETS
def test_eval_rows_have_the_stated_candidates_with_the_truth_once(dataset: EvalDataset, mini_mmeb_dir: Path) -> None:
    for row in eval_rows(mini_mmeb_dir, dataset.name):
        texts, paths = row["tgt_text"], row["tgt_img_path"]
        if dataset.name in STRING_TARGET_TEXT:
            assert isinstance(texts, str)
            texts = [texts] * len(paths)
        candidates = list(zip(texts, paths, strict=True))
        assert len(set(candidates)) == len(candidates) == dataset.num_candidates
        for path in filter(None, [row["qry_img_path"], *paths]):
            assert path.startswith(f"{dataset.name}/")
            open_image(mini_mmeb_dir / "MMEB-eval" / "images" / path)


@DATASETS
def test_no_candidate_shows_the_same_as_the_truth(dataset: EvalDataset, mini_mmeb_dir: Path) -> None:
    images = mini_mmeb_dir / "MMEB-eval" / "images"
    for row in eval_rows(mini_mmeb_dir, dataset.name):
        paths = row["tgt_img_path"]
        texts = row["tgt_text"] if isinstance(row["tgt_text"], list) else [row["tgt_text"]] * len(paths)
        contents = [
            (text, (images / path).read_bytes() if path else b"") for text, path in zip(texts, paths, strict=True)
        ]
        assert contents[0] not in contents[1:]


def test_eval_images_are_held_out(mini_mmeb_dir: Path) -> None:
    trained = set(digests(mini_mmeb_dir / "MMEB-train" / "images").values())
    held_out = set(digests(mini_mmeb_dir / "MMEB-eval" / "images").values())
    assert trained
    assert held_out
    assert not trained & held_out

    def scans(folder: str) -> set[str]:
        return {scan for path in (mini_mmeb_dir / folder).rglob("*.png") for scan in re.findall(r"d\d{4}", path.name)}

    assert not scans("MMEB-train") & scans("MMEB-eval")


@pytest.mark.parametrize("split", ["original", "diverse_instruction"])
def test_datasets_library_loads_it_offline(split: str, mini_mmeb_dir: Path, tmp_path: Path) -> None:
    loaded = load_dataset(str(mini_mmeb_dir / "MMEB-train"), "PairVQA", split=split, cache_dir=str(tmp_path))
    assert loaded.to_list() == train_rows(mini_mmeb_dir, "PairVQA", split)
    loaded = load_dataset(str(mini_mmeb_dir / "MMEB-eval"), "MosaicGround", split="test", cache_dir=str(tmp_path))
    assert loaded.to_list() == eval_rows(mini_mmeb_dir, "MosaicGround")


def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        build_mini_mmeb(tmp_path / name, seed, TINY_SCALE)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    one, three = digests(tmp_path / "one", "*.parquet"), digests(tmp_path / "three", "*.parquet")
    assert one.keys() == three.keys()
    assert all(one[file] != three[file] for file in one)


def test_program_refuses_to_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "MMEB-eval").mkdir()
    monkeypatch.setattr(sys, "argv", ["data_prep.mini_mmeb", str(tmp_path), "--scale", str(TINY_SCALE)])
    assert run_program(mini_mmeb.main) == 2
    expected = f"error: {tmp_path / 'MMEB-eval'}: exists already; remove it or choose another folder\n"
    assert capsys.readouterr() == ("", expected)
    assert [path.name for path in tmp_path.iterdir()] == ["MMEB-eval"]


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise InputError("broken")

    monkeypatch.setattr("data_prep.mini_mmeb.write_readme", broken)
    with pytest.raises(InputError, match="broken"):
        build_mini_mmeb(tmp_path, 0, TINY_SCALE)
    assert list(tmp_path.iterdir()) == []
