"""Shards behind http, read by range requests."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.range_server import Store, served
from trials.rig.patience import HANG_SECONDS
from vlm2vec.batches import GlobalOrder, Mixture
from vlm2vec.choices import BLOCK
from vlm2vec.errors import InputError
from vlm2vec.shards import Cache, DamagedSampleError, Sample, ShardSet, remote


@pytest.fixture
def store(mini_shards_dir: Path) -> Iterator[Store]:
    with served(mini_shards_dir) as store:
        yield store


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.01)


def test_samples_are_those_of_the_folder_and_come_once(mini_shards_dir: Path, store: Store, tmp_path: Path) -> None:
    local = ShardSet.open(mini_shards_dir)
    far = ShardSet.open(store.url + "/", cache=Cache(tmp_path))
    assert far.fingerprint == local.fingerprint
    places = [(name, position) for name in far.subsets for position in range(0, far.num_samples[name], 5)]
    assert far.read_many(places) == local.read_many(places)
    assert len(store.ranges) == len(set(store.ranges)) == len(places)
    again = ShardSet.open(store.url, cache=Cache(tmp_path))
    assert again.read(*places[3]) == local.read(*places[3])
    assert len(store.ranges) == len(places)


def test_block_order_reads_neighbours_in_one_piece(mini_shards_dir: Path, store: Store, tmp_path: Path) -> None:
    local = ShardSet.open(mini_shards_dir, ["Photos", "PairVQA"])
    far = ShardSet.open(store.url, ["Photos", "PairVQA"], block_samples=10, cache=Cache(tmp_path))
    order = GlobalOrder(far.num_samples, 8, seed=0, mixture=Mixture(order=BLOCK))
    read = 0
    for step in range(order.steps_per_epoch):
        batch = order.batch(step)
        places = [
            (far.subsets[subset], position)
            for subset, position in zip(batch.subsets.tolist(), batch.positions.tolist(), strict=True)
        ]
        assert far.read_many(places) == local.read_many(places)
        read += len(places)
    # 28 to 30 samples in shards of 16, so a subset has four blocks of at most ten samples, cut where a shard ends.
    assert read > 50
    assert len(store.ranges) == len(set(store.ranges)) == 8
    tars = {path: (mini_shards_dir / path.lstrip("/")).stat().st_size for path, _, _ in store.ranges}
    fetched = sum(end - start for _, start, end in store.ranges)
    assert 0.9 * sum(tars.values()) - 20_000 < fetched <= sum(tars.values())


def _read(shards: ShardSet, queue: multiprocessing.Queue[Sample]) -> None:
    queue.put(shards.read("Photos", 4))


def test_worker_processes_read_too(mini_shards_dir: Path, store: Store, tmp_path: Path) -> None:
    far = ShardSet.open(store.url, ["Photos"], cache=Cache(tmp_path))
    far.read("Photos", 0)  # the connection of this process exists
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[Sample] = context.Queue()
    worker = context.Process(target=_read, args=(far, queue))
    worker.start()
    assert queue.get(timeout=HANG_SECONDS) == ShardSet.open(mini_shards_dir).read("Photos", 4)
    worker.join()
    assert pickle.loads(pickle.dumps(far)).read("Photos", 4).row == 4


def test_a_store_that_stumbles_is_asked_again(mini_shards_dir: Path, store: Store, tmp_path: Path) -> None:
    far = ShardSet.open(store.url, ["Photos"], cache=Cache(tmp_path))
    store.failures = 3
    assert far.read("Photos", 0) == ShardSet.open(mini_shards_dir).read("Photos", 0)
    store.failures = 10**6
    with pytest.raises(InputError, match=rf"{store.url}/Photos/Photos-00000\.tar: no answer after 5 attempts \(.*503"):
        far.read("Photos", 1)
    with pytest.raises(InputError, match=r"manifest\.json: no answer"):
        ShardSet.open(store.url, cache=Cache(tmp_path))


def test_what_is_wrong_names_the_url(mini_shards_dir: Path, store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{store.url}/nothing/manifest\.json: no manifest"):
        ShardSet.open(store.url + "/nothing", cache=Cache(tmp_path))
    with pytest.raises(InputError, match=r"nosuch://x/manifest\.json: cannot be opened"):
        ShardSet.open("nosuch://x", cache=Cache(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--cache_dir .*file"):
        ShardSet.open(store.url, cache=Cache(tmp_path / "file"))
    far = ShardSet.open(store.url, ["Photos"], cache=Cache(tmp_path))
    store.whole = True
    with pytest.raises(InputError, match="does not answer range requests"):
        far.read("Photos", 1)


def test_damage_and_a_different_version_are_detected(mini_shards_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(mini_shards_dir, tmp_path / "copy"))
    tar = copy / "Photos" / "Photos-00000.tar"
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    with served(copy) as store:
        far = ShardSet.open(store.url, ["Photos"], cache=Cache(tmp_path / "cache"))
        with pytest.raises(DamagedSampleError, match=rf"{store.url}/Photos/Photos-00000\.tar: sample .* is damaged"):
            far.read("Photos", 0)
        (copy / "Photos" / "Photos-00001.tar").unlink()
        with pytest.raises(DamagedSampleError, match="cannot read sample Photos/00000020"):
            far.read("Photos", 20)


def test_the_cache_keeps_what_is_allowed(store: Store, tmp_path: Path) -> None:
    far = ShardSet.open(store.url, ["Photos"], cache=Cache(tmp_path, max_bytes=40_000))
    sizes = far.columns("Photos")["size"]
    assert sizes.sum() > 80_000
    for position in range(far.num_samples["Photos"]):
        far.read("Photos", position)
        time.sleep(0.002)  # so that the files' times differ
    kept = sum(path.stat().st_size for path in tmp_path.rglob("*.tar-*"))
    assert 30_000 < kept < 40_000 + 40_000 / 16 + sizes.max()
    far.read("Photos", 0)  # gone, and fetched again
    assert len(store.ranges) == far.num_samples["Photos"] + 1
