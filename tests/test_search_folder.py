"""`examples/search_folder.py` on a folder of images: what is found, what is encoded again, what is refused."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_examples import EXAMPLES, run_example
from vlm2vec import VLM2Vec

pytestmark = pytest.mark.numeric

COLOURS = ("red", "green", "blue", "white")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four plain images, one of them in a sub-folder, and a file that is none."""
    root = tmp_path / "photos"
    (root / "more").mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 30), colour).save(root / ("more" if number == 3 else "") / f"{colour} & <b>.png")
    (root / "notes.txt").write_text("no image")
    return root


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object, expect: int = 0) -> tuple[str, str]:
        assert run_example(monkeypatch, *(str(each) for each in arguments), name="search_folder.py") == expect
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of `encode_documents` got."""
    counts: list[int] = []
    kept = VLM2Vec.encode_documents

    def counting(self: VLM2Vec, *arguments: Any, **named: Any) -> Any:
        counts.append(len(named["images"]))
        return kept(self, *arguments, **named)

    monkeypatch.setattr(VLM2Vec, "encode_documents", counting)
    return counts


def test_what_is_found_by_image_and_text(search: Any, folder: Path, mini_model_dir: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "index", tmp_path / "result.html"
    search("index", folder, "--model", mini_model_dir, "--out", out)
    shown, _ = search("find", out, "--image", folder / "blue & <b>.png", "--top", 2, "--page", page)
    assert re.fullmatch(r"1\.0000  blue & <b>\.png\n-?\d\.\d{4}  [\w/]+ & <b>\.png\n", shown)
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 3  # the query's, and two results
    assert "blue &amp; &lt;b&gt;.png" in html
    assert "<b>" not in html

    encoder = VLM2Vec.from_pretrained(mini_model_dir)
    names = ["blue & <b>.png", "green & <b>.png", "more/white & <b>.png", "red & <b>.png"]
    vectors = encoder.encode(images=[folder / name for name in names])
    instruction = "Find an image: {text}\n"
    scores = encoder.similarity(encoder.encode(["Find an image: a <i>car</i>\n"]), vectors)[0].numpy()
    shown, _ = search("find", out, "a <i>car</i>", "--instruction", instruction, "--page", page)
    lines = [line.split("  ") for line in shown.splitlines()]
    assert [name for _, name in lines] == [names[place] for place in np.argsort(-scores, kind="stable")]
    np.testing.assert_allclose([float(score) for score, _ in lines], np.sort(scores)[::-1], atol=2e-4)
    assert "a &lt;i&gt;car&lt;/i&gt;" in page.read_text()


def test_only_what_is_new_is_encoded(
    search: Any, encoded: list[int], folder: Path, mini_model_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "index"
    flags = ("index", folder, "--model", mini_model_dir, "--out", out)
    shutil.copy(folder / "red & <b>.png", folder / "copy.png")
    assert search(*flags)[0] == f"{out}: 5 images, 0 dropped, 0 left out\n"
    assert search(*flags)[0] == f"{out}: 5 images, 0 dropped, 0 left out\n"
    assert encoded == [4]  # a copy has the same vector

    (folder / "green & <b>.png").unlink()
    Image.new("RGB", (40, 30), "black").save(folder / "red & <b>.png")  # the copy stays red
    (folder / "bad.jpg").write_bytes(b"no image")
    Image.new("RGB", (900, 3)).save(folder / "thin.png")
    (tmp_path / "outside.png").write_bytes((folder / "copy.png").read_bytes())
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "elsewhere").mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    shown, said = search(*flags)
    assert shown == f"{out}: 4 images, 1 dropped, 4 left out\n"
    assert encoded == [4, 1]
    for fault in (
        "bad.jpg: not a JPEG",
        "an image of 900 x 3 pixels is too thin",
        "link.png: a link that leads out",
        "linked: a link to a folder",
    ):
        assert fault in said
    names = json.loads((out / "index.json").read_text())["names"]
    assert names == ["blue & <b>.png", "copy.png", "more/white & <b>.png", "red & <b>.png"]
    (file,) = out.glob("vectors-*.npy")
    expected = VLM2Vec.from_pretrained(mini_model_dir).encode(images=[folder / name for name in names])
    np.testing.assert_allclose(np.load(file), expected.numpy(), atol=5e-6)

    (folder / "copy.png").unlink()
    (folder / "blue & <b>.png").unlink()
    page = tmp_path / "page.html"
    assert "copy.png" in search("find", out, "red", "--page", page)[0]  # found, but no longer there
    assert page.read_text().count("cannot be read any more") == 2


def test_a_large_index_is_not_written_at_every_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written when an eighth of it is new, and where nothing is new not at all."""
    program = runpy.run_path(str(EXAMPLES / "search_folder.py"))
    update_index = program["update_index"]
    update_index.__globals__["IMAGES_AT_A_TIME"] = 1
    for number in range(20):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / f"{number}.png")
    written: list[int] = []
    save = np.save

    def counting(file: Any, vectors: Any, **named: Any) -> None:
        written.append(len(vectors))
        save(file, vectors, **named)

    monkeypatch.setattr(np, "save", counting)
    steps = 0

    class Encoder:
        """Stops at its 22nd image, as if a person did."""

        def encode_documents(self, images: list[bytes], instruction: str) -> torch.Tensor:
            nonlocal steps
            steps += len(images)
            if steps == 22:
                raise KeyboardInterrupt
            return torch.ones(len(images), 8)

    facts = {"model": "m", "identity": "0" * 64, "instruction": ""}
    with pytest.raises(KeyboardInterrupt):
        update_index(tmp_path / "index", str(folder), Encoder(), facts)
    assert written == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 19]
    written.clear()
    assert "24 images" in update_index(tmp_path / "index", str(folder), Encoder(), facts)
    assert (steps, written) == (22 + 5, [22, 24])  # 19 of the 24 were kept
    written.clear()
    update_index(tmp_path / "index", str(folder), Encoder(), facts)
    assert (steps, written) == (22 + 5, [])


def test_one_command_indexes_and_searches(
    search: Any,
    encoded: list[int],
    folder: Path,
    mini_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The index is cached for the folder and the model; an image finds itself, a text is asked for as in MMEB."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = ("--model", mini_model_dir)
    shown, _ = search("search", folder, "--image", folder / "blue & <b>.png", "--top", 1, *model)
    assert shown == "1.0000  blue & <b>.png\n"
    encoder = VLM2Vec.from_pretrained(mini_model_dir)
    caption = encoder.encode(["Find me an everyday image that matches the given caption: a car."])
    image = encoder.encode(["<|image_1|> Represent the given image."], [folder / "red & <b>.png"])
    shown, _ = search("search", folder, "a car", *model)
    scores = {name: float(score) for score, name in (line.split("  ") for line in shown.splitlines())}
    assert scores["red & <b>.png"] == pytest.approx(float(encoder.similarity(caption, image)), abs=2e-4)
    assert encoded == [4]
    search("search", folder, "a car", *model, "--image_instruction", "<|image_1|> Describe it.")
    assert encoded == [4, 4]
    assert len(list((tmp_path / "cache/vlm2vec/search_folder").iterdir())) == 2
    search("search", folder, "a car", *model, "--index", tmp_path / "own")
    assert (tmp_path / "own/index.json").is_file()
    assert "give a text, --image, or both" in search("search", folder, expect=2)[1]
    assert "no such image folder" in search("search", tmp_path / "nowhere", "a", expect=2)[1]


def test_what_is_refused(search: Any, folder: Path, mini_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    flags = ("index", folder, "--model", mini_model_dir, "--out", out)
    search(*flags)
    refused: list[tuple[tuple[object, ...], str]] = [
        ((), "expected search, index or find, not ''"),
        (("look", out), "expected search, index or find, not 'look'"),
        (("find", out), "give a text, --image, or both"),
        (("find", out, "a", "--top", "0"), "--top 0: must be 1 or more"),
        (("find", out, "a", "--page", tmp_path / "no/page.html"), "no/page.html: there is no such folder"),
        (("find", folder, "a"), "no index there"),
        (("find", out, "a", "--pages", "x"), "unknown option --pages; did you mean --page?"),
        ((*flags, "--instruction", "Find:"), "made with another model, or with other settings or instructions"),
    ]
    for arguments, said in refused:
        assert said in search(*arguments, expect=2)[1]
    path = out / "index.json"
    content = json.loads(path.read_text())
    for change, said in (
        ({"vectors": "../vectors.npy"}, "vectors is"),
        ({"names": content["names"][:1]}, "1 names, but vectors of shape (4, "),
        ({"identity": "0" * 64}, "made with another model than"),
    ):
        path.write_text(json.dumps({**content, **change}))
        assert said in search("find", out, "a", expect=2)[1]
