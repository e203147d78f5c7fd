"""Messages between ranks are JSON of the expected type, never a pickle."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from trials.rig.forked import run_forked
from trials.rig.launcher import REPOSITORY
from vlm2vec.errors import InputError
from vlm2vec.ranks import messages
from vlm2vec.ranks.messages import decoded, encoded, gather_from_all, send_from_first

NUMBERS = {"list": [1, 2.5, None, True], "text": "größer \ud800 \x00", "nested": {"a": {}}}


@dataclass(frozen=True)
class Found:
    """A value of a program's own."""

    folder: Path
    sizes: tuple[int, ...]
    part: Found | None = None


def test_no_collective_of_pickled_objects_is_left() -> None:
    collective = re.compile(r"(all_gather|gather|broadcast|scatter|send|recv)_object(_list)?\b")
    for folder in ("vlm2vec", "eval", "data_prep", "benchmarks", "examples"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            assert not collective.search(file.read_text()), file


def test_values_arrive_as_they_were() -> None:
    found = Found(Path("a/b"), (1, 2), Found(Path("c"), ()))
    assert decoded(encoded(found, Found), 0, Found) == found
    assert decoded(encoded(None, Found | None), 0, Found | None) is None
    assert decoded(encoded(NUMBERS), 0) == NUMBERS
    assert gather_from_all(found, Found) == [found]  # a process alone
    assert send_from_first(NUMBERS) == NUMBERS


@pytest.mark.parametrize(
    ("text", "kind", "problem"),
    [
        (pickle.dumps(NUMBERS), Any, "not JSON"),
        (b'{"half": ', Any, "not JSON"),
        (b"\xff\xfe\x00", Any, "not JSON"),
        (b"[" * 100_000, Any, "not JSON"),
        (b'{"folder": 3, "sizes": []}', Found, "folder: "),
        (b'{"folder": "a", "sizes": ["x"]}', Found, r"sizes\.0: "),
        (b'"a"', int | None, "valid integer"),
    ],
)
def test_what_is_not_such_a_value_is_one_line(text: bytes, kind: Any, problem: str) -> None:
    with pytest.raises(InputError, match=rf"what rank 3 sent cannot be read \(.*{problem}.*private network") as caught:
        decoded(text, 3, kind)
    assert "\n" not in str(caught.value)


def test_a_message_that_cannot_be_sent_is_refused_by_its_sender() -> None:
    with pytest.raises(TypeError):
        encoded(Path("a"))


def pickled(value: Any, kind: Any = Any) -> bytes:
    """What torch's own collectives would send."""
    return pickle.dumps(value)


def rank() -> None:
    """One of three; values of different lengths, and a first rank that sends what is not JSON."""
    dist.init_process_group("gloo")
    own = dist.get_rank()
    values = [Found(Path("x" * (1 + 50 * each)), tuple(range(each))) for each in range(3)]
    assert gather_from_all(values[own], Found) == values
    assert send_from_first(values[own], Found) == values[0]
    assert send_from_first(None if own == 0 else NUMBERS) is None
    true_encoding, most = messages.encoded, messages.MOST_BYTES
    for sender in (0, 2):
        messages.encoded = pickled if own == sender else true_encoding
        with pytest.raises(InputError, match=rf"what rank {sender} sent cannot be read \(not JSON"):
            gather_from_all(NUMBERS)
    messages.encoded = pickled
    with pytest.raises(InputError, match="what rank 0 sent cannot be read"):
        send_from_first(NUMBERS)
    messages.encoded, messages.MOST_BYTES = true_encoding, 10
    for tell in (gather_from_all, send_from_first):
        with pytest.raises(InputError, match=r"what rank 0 sent cannot be read \(\d+ bytes, expected 1 to 10\)"):
            tell(NUMBERS)
    messages.MOST_BYTES = most
    assert gather_from_all(own) == [0, 1, 2]  # all of them refused, and none was left behind
    dist.destroy_process_group()


def test_three_ranks_exchange_values(tmp_path: Path) -> None:
    run_forked(3, rank, [], tmp_path)
