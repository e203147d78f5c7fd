"""The mining program: on one rank and two, after kills, with different teachers, on different data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import mine
from data_prep.conversion import convert
from data_prep.conversion_plan import DEFAULT_OPTIONS
from data_prep.mining.embed import ShardItems
from data_prep.mining.output import OutputFolder
from data_prep.mining.rank import RankStore
from data_prep.source import SourceData
from tests.data_prep.mining import dying_miner
from trials.rig.forked import ended, start_forked
from trials.rig.hand_made_train import make_dataset, row, write_rows
from trials.rig.launcher import free_port
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.mined.format import Mined
from vlm2vec.shards import ShardSet

SIGKILL_EXIT = -9
SUBSETS = ("Digits_10", "Pairs_t2i", "Recolor")


@pytest.fixture(scope="module")
def options(mini_shards_dir: Path, mini_model_dir: Path) -> list[str]:
    return [
        *(str(mini_shards_dir), "--model_name", str(mini_model_dir), "--subset_name", *SUBSETS),
        *("--skip_ranks", "2", "classification=0", "--margin", "-0.001", "--num_negatives", "3"),
        *("--num_candidates", "12", "--cluster_size", "4", "--batch_tokens", "64", "--dataloader_num_workers", "0"),
    ]


@pytest.fixture(scope="module")
def one_rank(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_rank") / "mined"
    mine.main([*options, "--output_dir", str(folder)])
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything but vectors and ranks."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.numeric
def test_what_is_mined_is_what_the_encoder_ranks(
    one_rank: Path, mini_shards_dir: Path, mini_model_dir: Path, options: list[str]
) -> None:
    shards = ShardSet.open(mini_shards_dir, SUBSETS)
    mined = Mined.open(one_rank, shards.fingerprint, shards.num_samples)
    encoder = VLM2Vec.from_pretrained(mini_model_dir)
    for name in SUBSETS:
        samples = [shards.read(name, position) for position in range(shards.num_samples[name])]
        sides = []
        for items in ([sample.query for sample in samples], [sample.positive for sample in samples]):
            images = [item.image for item in items]
            sides.append(encoder.encode(texts=[item.text for item in items], images=images).numpy())
        scores = (sides[0].astype(np.float64)) @ sides[1].T
        found, hashes = mined.subset(name), shards.columns(name)["positive_hash"]
        np.testing.assert_allclose(found.positive_score, scores.diagonal(), atol=1e-5)
        skipped = 0 if name == "Digits_10" else 2
        queries = shards.columns(name)["query_hash"]
        for place in range(len(samples)):
            first = np.unique(hashes, return_index=True)[1]
            others = first[hashes[first] != hashes[place]]
            order = others[np.argsort(-scores[place][others], kind="stable")][:12]
            known = np.isin(hashes[order], hashes[queries == queries[place]])
            false = known | (scores[place][order] > scores[place, place] + 0.001)
            expected = order[skipped:][~false[skipped:]][:3]
            negatives = found.negatives[place]
            assert len(negatives) == len(expected), (name, place)
            np.testing.assert_allclose(scores[place][negatives], scores[place][expected], atol=1e-5)
            own_scores = found.negative_scores[found.negatives.offsets[place] :][: len(negatives)]
            np.testing.assert_allclose(own_scores, scores[place][negatives], atol=1e-5)
            assert found.false_negatives[place].tolist() == sorted(order[false].tolist()), (name, place)
        assert np.bincount(found.cluster[found.cluster >= 0]).tolist() == [4] * (len(samples) // 4)


def test_two_ranks_give_the_same_files_and_killed_runs_are_taken_up(
    options: list[str],
    one_rank: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two ranks mine once, and are killed after 2 blocks of vectors each; one rank is stopped twice more."""
    codes = ended(start_forked(2, dying_miner.main, [str(tmp_path), str(free_port()), *options], tmp_path))
    output = (tmp_path / "rank0.log").read_text(errors="replace")
    assert codes == [SIGKILL_EXIT] * 2, output
    assert files_of(tmp_path / "two_ranks") == files_of(one_rank)
    torn = tmp_path / "torn"
    with pytest.raises(InputError, match="mining is not complete"):
        Mined.read(torn)
    for owner, name in ((RankStore, "write"), (OutputFolder, "finish_subset")):
        original = getattr(owner, name)

        def write_and_stop(*arguments: Any, original: Any = original) -> None:
            original(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(owner, name, write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            mine.main([*options, "--output_dir", str(torn)])
        monkeypatch.undo()
        assert not (torn / "mined.json").exists()
    capsys.readouterr()
    mine.main([*options, "--output_dir", str(torn)])
    assert " 0 of them to encode" in capsys.readouterr().out
    assert files_of(torn) == files_of(one_rank)


def test_vectors_serve_other_settings_and_a_complete_folder_is_left_alone(
    options: list[str], one_rank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(one_rank)
    mine.main([*options, "--output_dir", str(one_rank)])
    assert files_of(one_rank) == before
    with pytest.raises(InputError, match=r"was started with a different cluster_size \(4, now 5\)"):
        mine.main([*options, "--cluster_size", "5", "--output_dir", str(one_rank)])
    capsys.readouterr()
    other = [*options, "--cluster_method", "greedy", "--embeddings_dir", str(one_rank / "embeddings")]
    mine.main([*other, "--output_dir", str(tmp_path / "greedy")])
    assert " 0 of them to encode" in capsys.readouterr().out


def test_items_are_found_once_over_all_subsets(mini_shards_dir: Path) -> None:
    shards = ShardSet.open(mini_shards_dir)
    items = ShardItems.find(shards)
    hashes: dict[int, int] = {}
    for name in shards.subsets:
        for side, numbers in zip(("query", "positive"), items.numbers[name], strict=True):
            for number, value in zip(numbers.tolist(), shards.columns(name)[f"{side}_hash"].tolist(), strict=True):
                assert hashes.setdefault(number, value) == value
    assert len(set(hashes.values())) == len(hashes) == len(items)
    for number, value in hashes.items():
        side = ("query", "positive")[items.side[number]]
        assert shards.columns(items.subsets[items.subset[number]])[f"{side}_hash"][items.position[number]] == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--output_dir", "SHARDS/mined"], "is inside the shards' folder"),
        (["--output_dir", "FULL"], r"not empty \(file\), and not a folder of this program"),
        (["--skip_ranks", "WebDigits=3"], "no such subset is mined"),
        (["--model_name", "FULL"], "FULL"),
        (["--cluster_size", "0", "--cluster_method", "metis"], "no effect with --cluster_size 0"),
        (["--subset_name", "Cats"], "no subset Cats"),
    ],
)
def test_what_cannot_be_mined_is_refused(
    changes: list[str], message: str, options: list[str], mini_shards_dir: Path, tmp_path: Path
) -> None:
    full = tmp_path / "FULL"
    full.mkdir()
    (full / "file").touch()
    given = [str(mini_shards_dir / word[7:]) if word.startswith("SHARDS/") else word for word in changes]
    given = [str(full) if word == "FULL" else word for word in given]
    with pytest.raises(InputError, match=message):
        mine.main([*options, "--output_dir", str(tmp_path / "new"), *given])


def test_a_teacher_of_sentence_transformers(mini_shards_dir: Path, mini_model_dir: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(mini_model_dir / "tokenizer.json"))
    weights = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 8)).astype(np.float32)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")
    model.save(str(tmp_path / "teacher"))
    texts = [f"{word} {other}" for word in ("red", "blue", "green") for other in ("circle", "square", "star", "cat")]
    data = tmp_path / "data"
    write_rows(make_dataset(data), [row(n, qry=f"a {t}", qry_image_path="", pos_text=t) for n, t in enumerate(texts)])
    convert(SourceData(data, data, ["all"]), tmp_path / "shards", DEFAULT_OPTIONS)
    common = ["--model_name", str(tmp_path / "teacher"), "--cluster_size", "4", "--num_candidates", "5"]
    common += ["--num_negatives", "2", "--skip_ranks", "1", "--dataloader_num_workers", "0", "--output_dir"]
    mine.main([str(tmp_path / "shards"), *common, str(tmp_path / "mined")])
    found = Mined.read(tmp_path / "mined").subset("A")
    queries, targets = (model.encode(each, normalize_embeddings=True) for each in ([f"a {t}" for t in texts], texts))
    scores = queries @ targets.T
    np.testing.assert_allclose(found.positive_score, scores.diagonal(), atol=1e-5)
    np.fill_diagonal(scores, -2)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, 1:3]
    assert [found.negatives[place].tolist() for place in range(len(texts))] == expected.tolist()
    with pytest.raises(InputError, match="the model takes text, not image"):
        mine.main([str(mini_shards_dir), *common, str(tmp_path / "no"), "--subset_name", "SameDigit"])
