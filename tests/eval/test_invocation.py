"""scored_by.json: what it says of a run, what it hides, and how the report shows it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

import vlm2vec
from eval import invocation
from eval.invocation import CALLS_FILE, Invocation, Started, command_line, describe_calls, duration, read_invocations
from trials.rig.patience import HANG_SECONDS
from vlm2vec.errors import InputError


def call(command: str = "python -m eval.mmeb", datasets: tuple[str, ...] = ("A",)) -> Invocation:
    return Invocation(
        finished="2026-01-02T03:04:05+00:00",
        command=command,
        version="1.2.3",
        commit="abc",
        device="CPU",
        num_ranks=2,
        seconds=61.0,
        num_encoded=1000,
        datasets=list(datasets),
    )


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--image_dir", "my images"], "--image_dir 'my images'"),
        (["--local_rank", "3", "--batch_tokens", "64"], "--batch_tokens 64"),
        (["--local_rank=3", "--lora"], "--lora"),
        (["--hub_token", "secret", "--lora"], "--hub_token HIDDEN --lora"),
        (["--token=secret"], "--token=HIDDEN"),
        (["--model_name", "hf_abcDEF123"], "--model_name HIDDEN"),
        (["--dataset_name", "https://me:word@host/data"], "--dataset_name https://HIDDEN@host/data"),
        (["--dataset_name", "s3://host/data?signature=1&x=2"], "--dataset_name 's3://host/data?HIDDEN'"),
    ],
)
def test_a_command_line_is_shown_without_secrets(words: list[str], shown: str) -> None:
    assert command_line("eval.mmeb", words) == f"python -m eval.mmeb {shown}"


def test_a_word_of_several_lines_is_shown_on_one_that_bash_reads() -> None:
    word = "it's {text}\\\n<|image_1|>\n"
    line = command_line("eval.retrieval", ["--query_instruction", word])
    assert "\n" not in line
    script = 'python() { printf %s. "${@: -1}"; }\n' + line
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=HANG_SECONDS)
    assert done.stdout == f"{word}."


def test_a_later_call_takes_over_what_it_scored(tmp_path: Path) -> None:
    for words, datasets, encoded in (
        (["1"], ["A", "B"], 5),
        (["2"], ["B", "C"], 3),
        (["2"], ["B"], 0),
        (["3"], ["A"], 0),
    ):
        Started.now("eval.mmeb", words).record(tmp_path, torch.device("cpu"), encoded, datasets)
    calls = read_invocations(tmp_path)
    assert [(each.command[-1], each.datasets, each.num_encoded) for each in calls] == [
        ("2", ["B", "C"], 3),  # repeated without work: as it was
        ("3", ["A"], 0),
    ]
    first, second = describe_calls(calls)
    assert re.fullmatch(
        rf"scored B, C 20\d\d-\d\d-\d\d \d\d:\d\d UTC by vlm2vec {vlm2vec.__version__}.* in .* s, CPU \(.*\), "
        "3 items encoded: python -m eval.mmeb 2",
        first,
    )
    assert second.startswith("scored A ")


def test_a_call_for_people() -> None:
    (line,) = describe_calls([call()])
    assert line == (
        "scored 2026-01-02 03:04 UTC by vlm2vec 1.2.3, commit abc in 1 min 1 s, 2 ranks on CPU, 1,000 items encoded: "
        "python -m eval.mmeb"
    )
    assert [duration(seconds) for seconds in (3.25, 59.96, 60, 3725)] == ["3.2 s", "60.0 s", "1 min 0 s", "1 h 2 min"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finished": "yesterday"}, "yesterday"),
        ({"seconds": -1.0}, "seconds"),
        ({"command": 3}, "command"),
        ({"datasets": "A"}, "datasets"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    assert read_invocations(tmp_path) == []
    (tmp_path / CALLS_FILE).write_text(json.dumps({"calls": [{**call().model_dump(), **change}]}))
    with pytest.raises(InputError, match=rf"scored_by\.json: .*{message}.*delete this file") as refused:
        read_invocations(tmp_path)
    assert "\n" not in str(refused.value)


def test_the_commit_is_that_of_the_packages_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel installed inside somebody's checkout has no commit; a checkout has, and says that it was changed."""

    def git(*words: str) -> None:
        identity = ("-c", "user.name=me", "-c", "user.email=me@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True, timeout=300)

    package = tmp_path / "vlm2vec/__init__.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr(vlm2vec, "__file__", str(package))
    source_commit = invocation.source_commit.__wrapped__
    assert source_commit() is None
    git("init")
    assert source_commit() is None  # no commit yet
    git("add", ".")
    git("commit", "-m", "one")
    commit = source_commit()
    assert commit is not None
    assert re.fullmatch("[0-9a-f]{12}", commit)
    package.write_text("changed")
    assert source_commit() == f"{commit} and changes"
    site = tmp_path / "site-packages/vlm2vec/__init__.py"
    monkeypatch.setattr(vlm2vec, "__file__", str(site))
    assert source_commit() is None
