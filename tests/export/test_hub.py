"""Uploads to a stand-in for the Hub: the uploaded files, failed uploads, and refused ones."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from tests.rig.hub_stand_in import TOKEN, USER, HubStandIn, Repository, hub_stand_in
from vlm2vec.errors import run_program
from vlm2vec.export.__main__ import main
from vlm2vec.export.card import CARD
from vlm2vec.export.companions import write_companions
from vlm2vec.formats.json_files import write_json
from vlm2vec.model_folder.adapter_files import ADAPTER_CONFIG
from vlm2vec.model_folder.settings import SETTINGS_FILE

Export = Callable[..., int]
NAME = f"{USER}/model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """The stand-in, with which huggingface_hub speaks from now on; a user who is logged in."""
    with hub_stand_in() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files by plain HTTP
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Export:
    """Runs the program."""

    def run_with(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["vlm2vec.export", *map(str, words)])
        return run_program(main)

    return run_with


@pytest.fixture
def exported(mini_model_dir: Path, tmp_path: Path) -> Path:
    """A folder as an export leaves it, with two examples in its card."""
    folder = tmp_path / "exported"
    shutil.copytree(mini_model_dir, folder)
    write_companions(folder)
    write_json(folder / SETTINGS_FILE, {})
    text = '---\nlicense: mit\n---\n# exported\n\n```python\nSentenceTransformer("exported")\n```\n'
    (folder / CARD).write_text(text + '\n```python\nVLM2Vec.from_pretrained("exported")\n```\n"exported" is kept.\n')
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_is_exported_and_uploaded_at_once(
    hub: HubStandIn, run: Export, engine_runs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    hub.broken = "whoami"
    assert run(engine_runs_dir / "zero2", out, "--push_to_hub", "model") == 2
    assert "--push_to_hub model: cannot log in to the Hub (" in capsys.readouterr().err
    assert not out.exists()  # refused before the work

    hub.broken = None
    words = (engine_runs_dir / "zero2", out, "--push_to_hub", "model", "--private", "--hub_revision", "v1")
    assert run(*words) == 0
    said = capsys.readouterr()
    assert f"uploaded {out} to {hub.endpoint}/{NAME}" in said.out
    assert TOKEN not in said.out + said.err
    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.branches == {"main": {}, "v1": contents(out)}
    card = ModelCard.load(out / CARD)
    assert card.text.count(f'"{NAME}"') == 2
    for content in contents(out).values():
        assert str(tmp_path).encode() not in content
        assert str(engine_runs_dir).encode() not in content


def test_a_failed_upload_leaves_the_folder_and_says_how_to_repeat_it(
    hub: HubStandIn, run: Export, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.broken = "/commit/"
    assert run(exported, "--push_to_hub", NAME, "--private") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {exported} is complete, but it could not be uploaded to {NAME} (" in said
    assert "the stand-in refuses this" in said
    assert TOKEN not in said
    assert hub.repositories[NAME].branches == {"main": {}}
    kept = contents(exported)

    hub.broken = None
    command = shlex.split(said.partition("to upload it again: ")[2])
    assert command[:3] == ["python", "-m", "vlm2vec.export"]
    assert run(*command[3:]) == 0
    assert contents(exported) == kept == hub.repositories[NAME].branches["main"]
    assert kept[CARD].decode().splitlines()[6:] == [
        *(f'SentenceTransformer("{NAME}")', "```", "", "```python", f'VLM2Vec.from_pretrained("{NAME}")', "```"),
        '"exported" is kept.',
    ]


def test_an_upload_replaces_an_earlier_model(hub: HubStandIn, run: Export, exported: Path) -> None:
    """What would be loaded instead of the new weights, or with them, is gone; other files stay."""
    stale = dict.fromkeys(("model-00001-of-00002.safetensors", ADAPTER_CONFIG, "config.json"), b"old")
    mine = {"notes.txt": b"mine", "other/model.safetensors": b"mine"}
    hub.repositories["team/model"] = Repository(False, {"main": {**mine, **stale}})
    for _ in range(2):
        assert run(exported, "--push_to_hub", "team/model") == 0
        assert hub.repositories["team/model"].branches["main"] == {**mine, **contents(exported)}


def test_an_adapter_that_others_cannot_load_is_pointed_out(
    hub: HubStandIn, run: Export, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for base, warns in ((str(exported), True), ("microsoft/Phi-3.5-vision-instruct", False)):
        write_json(exported / ADAPTER_CONFIG, {"base_model_name_or_path": base})
        assert run(exported, "--push_to_hub", NAME) == 0
        assert ("others cannot load the adapter" in capsys.readouterr().err) is warns


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--push_to_hub", "a/b/c"), "--push_to_hub a/b/c: not a repository's name"),
        (("--push_to_hub", "https://huggingface.co/me/x"), "not a repository's name"),
        (("--push_to_hub", "my model"), "--push_to_hub my model: not a repository's name"),
        (("--push_to_hub", ""), "not a repository's name"),
        (("--push_to_hub", NAME, "--hub_revision", "a b"), "--hub_revision a b: not a branch's name"),
        (("--private",), "--private: has no effect without --push_to_hub"),
        (("--hub_revision", "v1"), "--hub_revision: has no effect without --push_to_hub"),
        ((), "no folder to make"),
        (("--push_to_hub", NAME, "--merge_lora"), "--merge_lora: has no effect on a folder that is exported already"),
        (("--push_to_hub", NAME, "--max_shard_size", "5GB"), "--max_shard_size: has no effect"),
    ],
)
def test_a_bad_command_line_never_reaches_the_hub(
    words: tuple[str, ...],
    said: str,
    hub: HubStandIn,
    run: Export,
    exported: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(exported, *words) == 2
    assert said in capsys.readouterr().err
    assert hub.requests == []


def test_what_else_is_refused(
    hub: HubStandIn,
    run: Export,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run").mkdir()
    assert run(tmp_path / "run", "--push_to_hub", NAME) == 2
    assert f"{tmp_path}/run: not an exported folder, it has no README.md" in capsys.readouterr().err
    assert hub.requests == []

    hub.repositories[NAME] = Repository(private=False)
    assert run(exported, "--push_to_hub", NAME, "--private") == 2
    assert "it exists and is public" in capsys.readouterr().err
    assert hub.repositories[NAME].branches == {"main": {}}

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert run(exported, "--push_to_hub", NAME) == 2
    said = capsys.readouterr().err
    assert "Invalid user token" in said
    assert "hf_wrong" not in said

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert run(exported, "--push_to_hub", NAME) == 2
    assert "no token for the Hub: run `hf auth login`, or set HF_TOKEN" in capsys.readouterr().err
