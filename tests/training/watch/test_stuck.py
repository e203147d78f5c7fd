"""Which rank is stuck, judged from the ranks' heartbeats."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vlm2vec.training.watch.stuck import GRACE_SECONDS, Mark, Verdict, Witness, Word

STEP, PAUSE = 60.0, 600.0
NAMES = ["rank 0 on a", "rank 1 on b", "rank 2 on c"]


def words(*counts: int, limit: float = STEP) -> list[Word]:
    return [Word(0, Mark(count, 7, f"place {count}", limit)) for count in counts]


def told(now: list[Word], seconds: float, silent: tuple[int, ...] = (), own: int = 0) -> Verdict | None:
    """After this number of seconds in which nothing changed but the beats of those who are not silent."""
    witness = Witness(NAMES, own, 1.0)
    for second in range(round(seconds) + 1):
        beats = [word if rank in silent else replace(word, beat=second) for rank, word in enumerate(now)]
        witness.hear(beats, 1.0)
    return witness.judge(STEP)


def test_the_rank_that_is_behind_is_named_when_its_own_time_is_over() -> None:
    assert told(words(9, 8, 9), STEP - 1) is None
    verdict = told(words(9, 8, 9), STEP)
    assert verdict is not None
    assert verdict.text == "rank 1 on b has not moved for 60 s, in step 7, place 8"
    assert verdict.suspects == (1,)


def test_ranks_ahead_wait_for_a_pause_of_one_behind() -> None:
    """They stand in a collective, whose own time is long over."""
    waiting = [*words(9, 9), *words(8, limit=PAUSE)]
    assert told(waiting, PAUSE - 1) is None
    assert told(waiting, PAUSE) == Verdict("rank 2 on c has not moved for 600 s, in step 7, place 8", (2,))


def test_a_silent_rank_has_no_pause() -> None:
    verdict = told([*words(9, 9), *words(8, limit=PAUSE)], STEP, silent=(2,))
    assert verdict is not None
    assert verdict.text == "rank 2 on c has been silent for 60 s, last heard of in step 7, place 8"


def test_the_silent_one_of_several_at_one_place_is_named() -> None:
    """It was stopped in a chunk that had lasted for a while: the place's time ends before its silence is long."""
    witness = Witness(NAMES, 0, 1.0)
    for second in range(round(STEP) + 1):
        beats = [min(second, 40), second, second]
        witness.hear([replace(word, beat=beats[-1 - rank]) for rank, word in enumerate(words(9, 9, 9))], 1.0)
    verdict = witness.judge(STEP)
    assert verdict is not None
    assert verdict.suspects == (2,)


def test_if_nobody_is_heard_the_rank_with_the_store_is_blamed() -> None:
    verdict = told(words(9, 9, 9), STEP, silent=(0, 1), own=2)
    assert verdict is not None
    assert verdict.suspects == (0,)
    verdict = told(words(9, 9, 9), STEP, silent=(1, 2), own=0)
    assert verdict is not None
    assert verdict.suspects == (1, 2)


def test_if_all_are_at_one_place_no_single_rank_is_blamed() -> None:
    verdict = told(words(9, 9, 9), STEP)
    assert verdict is not None
    assert verdict.text.startswith("no rank has moved for 60 s: rank 0 on a; rank 1 on b; rank 2 on c in step 7")


def test_time_counts_from_the_last_move_of_any_rank() -> None:
    """A word is old when it comes: after a long wait the last rank continues, and the others' words are still those."""
    witness = Witness(NAMES, 0, 1.0)
    for beat in range(100):
        witness.hear([replace(word, beat=beat) for word in [*words(9, 9), *words(8, limit=PAUSE)]], 1.0)
    witness.hear([replace(word, beat=100) for word in words(9, 9, 20)], 1.0)
    assert witness.judge(STEP) is None


@pytest.mark.parametrize(("seconds", "is_over"), [(GRACE_SECONDS - 1, False), (GRACE_SECONDS, True)])
def test_a_rank_that_ended_with_an_error_ends_the_others_soon(seconds: float, is_over: bool) -> None:
    ended = words(9, 9, 8)
    ended[2] = replace(ended[2], end="ChunkError: rank 2, pass 1")
    verdict = told(ended, seconds, silent=(2,))
    assert (verdict is not None) == is_over
    if verdict is not None:
        assert verdict.text == "rank 2 on c has ended in step 7, place 8: ChunkError: rank 2, pass 1"


def test_a_rank_whose_run_is_over_blocks_no_other() -> None:
    """The first rank may have something left to write."""
    over = [*words(9, limit=PAUSE), *(replace(word, end="") for word in words(8, 8))]
    assert told(over, 2 * STEP, silent=(1, 2)) is None
