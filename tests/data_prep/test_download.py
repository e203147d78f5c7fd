from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_prep import download as program
from tests.data_prep.test_archive import pack
from tests.rig.hub_server import running_hub
from trials.rig.hand_made_train import row, tree, write_rows
from trials.rig.patience import HANG_SECONDS
from vlm2vec.errors import InputError, run_program

IMAGES = "images/A/Train"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["download", *map(str, arguments)])
    return run_program(program.main)


def start_against(hub: str, module: str, *arguments: object) -> subprocess.Popen[str]:
    """A program with the real client, which reads the hub's address when it is imported."""
    settings = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env={**os.environ, **settings}, stdout=pipe, stderr=pipe, text=True)


def test_a_killed_download_continues_and_is_checked(dataset: Path, tmp_path: Path) -> None:
    (dataset / IMAGES / "noise.bin").write_bytes(np.random.default_rng(0).bytes(3_000_000))
    pack(dataset, "A/Train/", zipfile.ZIP_STORED)
    write_rows(dataset, [row(0)] * 3, "A/train-00000-of-00001.parquet")
    write_rows(dataset, [row(0)] * 3, "B/original-00000-of-00001.parquet")
    arguments = ("--dataset_name", "owner/name", "--subset_name", "A", "--output_dir", tmp_path / "local")
    with running_hub(dataset) as hub:
        hub.stall_after = 2_000_000
        killed = start_against(hub.url, "data_prep.download", *arguments)
        assert hub.stalled.wait(HANG_SECONDS)
        wait_for(tmp_path / "local/A/original-00000-of-00001.parquet")
        killed.kill()
        killed.communicate(timeout=HANG_SECONDS)
        assert not (tmp_path / "local/images_zip/A.zip").exists()
        hub.stall_after = None
        hub.released.set()
        hub.sent.clear()
        again = start_against(hub.url, "data_prep.download", *arguments)
        shown, errors = again.communicate(timeout=HANG_SECONDS)
    assert again.returncode == 0, errors
    assert "A: all images are there" in shown
    assert hub.sent == ["A.zip"]  # what was complete is not fetched again
    files = {name for name in tree(tmp_path / "local") if not name.startswith(".cache")}
    assert files == {"A/original-00000-of-00001.parquet", "images_zip/A.zip"}
    assert (tmp_path / "local/images_zip/A.zip").read_bytes() == (dataset / "images_zip/A.zip").read_bytes()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_missing_images_are_named(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(dataset, [row(0)], "B/original-00000-of-00001.parquet")
    assert run(monkeypatch, "--dataset_name", dataset) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["A: all images are there", "B: all images are there"]
    (dataset / IMAGES / "2.png").unlink()
    write_rows(dataset, [row(0, qry_image_path=f"{IMAGES}/{number}.png") for number in range(3, 20)])
    assert run(monkeypatch, "--dataset_name", dataset, "--subset_name", "A") == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "A: 17 images missing"
    assert f"{IMAGES}/3.png: no such image" in lines[1]
    assert lines[11] == "  and 7 more"


def test_missing_members_of_a_zip_are_named(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / IMAGES / "1.png").unlink()
    pack(dataset, "A/Train/")
    assert run(monkeypatch, "--dataset_name", dataset) == 3
    assert f"A.zip: {IMAGES}/1.png: no such image in the zip" in capsys.readouterr().out


def test_what_is_neither_a_folder_nor_on_the_hub_is_one_line(tmp_path: Path) -> None:
    for name in ("nowhere", "a/b/c", "owner/na me"):
        with pytest.raises(InputError, match="no such folder; download the dataset first"):
            program.download(name, ["all"], "original")
    with running_hub(tmp_path) as hub:
        arguments = ("--dataset_name", "owner/other", "--subset_name", "A", "--output_dir", tmp_path / "o")
        program_process = start_against(hub.url, "data_prep.convert", *arguments)
        _, error = program_process.communicate(timeout=HANG_SECONDS)
    assert program_process.returncode == 2
    assert error.startswith("error: owner/other: no such folder, and it cannot be downloaded")
    assert error.count("\n") == 1


def test_a_folder_is_not_downloaded(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--dataset_name", dataset, "--output_dir", tmp_path) == 2
    assert "--output_dir would have no effect" in capsys.readouterr().err
