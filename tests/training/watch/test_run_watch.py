"""One watch marks places for other ranks, measures parts and names them in traces, all together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from tests.training.watch.device import Device
from vlm2vec.contrastive.watch import AnyPart, Part, Place
from vlm2vec.training.watch.heartbeat import Heartbeat
from vlm2vec.training.watch.parts import STEP_PARTS, UNTIMED, RunPart
from vlm2vec.training.watch.run_watch import RunWatch

STEP_LIMIT, PAUSE_LIMIT = 10.0, 600.0


class Diary(Heartbeat):
    """Keeps its marks: the place in words, and for how long a rank may stay there."""

    def __init__(self) -> None:
        super().__init__(STEP_LIMIT, PAUSE_LIMIT)
        self.marks: list[tuple[str, float]] = []

    def mark(self, place: str, is_pause: bool = False) -> None:
        super().mark(place, is_pause)
        self.marks.append((self.where(), self._mark.limit))

    @property
    def places(self) -> list[str]:
        return [place for place, _ in self.marks]


@pytest.fixture
def diary(tmp_path: Path) -> Iterator[Diary]:
    store = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]  # torch leaves it out of __all__
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield Diary()
    dist.destroy_process_group()


def batch(step: int) -> SimpleNamespace:
    return SimpleNamespace(header=SimpleNamespace(step=step))


def test_a_part_is_marked_timed_and_named(diary: Diary) -> None:
    device = Device()
    watch = RunWatch(diary, device.clock())
    timed = [part for part in (*Part, *RunPart) if part not in UNTIMED]
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        for part in timed:
            with watch.part(part, Place(part, f"in {part.value}")):
                device.seconds += 1
                watch.at(Place(part, f"further in {part.value}"))
                device.seconds += 1
    assert diary.places == [f"{how} {part.value}" for part in timed for how in ("in", "further in")]
    assert device.looks == 0
    assert watch.clock.read() == dict.fromkeys(timed, 2.0)
    named = {each.key: each.count for each in trace.key_averages() if each.key.startswith("vlm2vec/")}
    assert named == {f"vlm2vec/{part.value}": 1 for part in timed}
    assert {part.value for part in timed} == {part.value for part in STEP_PARTS} | {"evaluation"}


@pytest.mark.parametrize("part", sorted(UNTIMED, key=str))
def test_start_and_profile_are_marked_only(part: AnyPart, diary: Diary) -> None:
    device = Device()
    watch = RunWatch(diary, device.clock())
    with profile(activities=[ProfilerActivity.CPU]) as trace, watch.part(part, Place(part, part.value, is_pause=True)):
        device.seconds += 1
    assert diary.marks == [(part.value, PAUSE_LIMIT)]
    assert watch.clock.read() == {}
    assert not [each.key for each in trace.key_averages() if each.key.startswith("vlm2vec/")]


def test_a_loops_places_come_in_order_and_with_their_limits(diary: Diary, capsys: pytest.CaptureFixture[str]) -> None:
    device = Device()
    watch = RunWatch(diary, device.clock())
    watch.starting("loading a model")
    assert capsys.readouterr().out == "starting: loading a model\n"
    for _ in watch.steps([batch(4), batch(5)]):  # type: ignore[list-item]
        with watch.part(Part.LOSS, Place(Part.LOSS, "loss")):
            device.seconds += 1
        for part in (RunPart.PROFILE, RunPart.EVALUATION, RunPart.CHECKPOINT):
            with watch.pause(part):
                device.seconds += 0.25
    pauses = ("profile", "evaluation", "checkpoint")

    def of_step(step: int, limit: float) -> list[tuple[str, float]]:
        places = [("beginning", limit), ("loss", limit)]
        for name in pauses:
            places += [(name, PAUSE_LIMIT), (f"{name} done", limit)]
        return [(f"step {step}, {place}", limit) for place, limit in places]

    assert diary.marks == [
        ("starting: loading a model", PAUSE_LIMIT),
        ("waiting for data", PAUSE_LIMIT),
        *of_step(5, PAUSE_LIMIT),  # until the first step has ended
        ("step 5, waiting for data", PAUSE_LIMIT),
        *of_step(6, STEP_LIMIT),
        ("step 6, waiting for data", PAUSE_LIMIT),
    ]
    assert watch.clock.read() == {
        **{Part.DATA_WAIT: 0.0, Part.LOSS: 2.0, RunPart.EVALUATION: 0.5, RunPart.CHECKPOINT: 0.5},
        RunPart.OTHER: 0.5,  # the profile's
    }


def test_the_place_of_an_error_stays(diary: Diary) -> None:
    device = Device()
    watch = RunWatch(diary, device.clock())
    place = Place(Part.PASS_2, "pass 2, kept chunk 3", is_kept=True)

    def failing() -> None:
        with watch.part(Part.PASS_2):
            watch.at(place)
            device.seconds += 1
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    device.seconds += 2
    assert (watch.place, watch.where()) == (place, "pass 2, kept chunk 3")
    assert watch.clock.read() == {Part.PASS_2: 1.0, RunPart.OTHER: 2.0}
    with pytest.raises(KeyError), watch.pause(RunPart.CHECKPOINT):
        raise KeyError
    assert watch.place == Place(RunPart.CHECKPOINT, "checkpoint", is_pause=True)
    assert diary.places == ["pass 2, kept chunk 3", "checkpoint"]


def test_parts_add_up_and_nothing_synchronizes_before_the_end(diary: Diary) -> None:
    device = Device()
    watch = RunWatch(diary, device.clock())
    for _ in range(2):
        with watch.part(Part.PASS_1):
            for _ in watch.steps([batch(0), batch(1), batch(2)]):  # type: ignore[list-item]
                device.seconds += 1  # inside the loop's body: no wait for data
            with watch.leaving(Part.LOSS, Place(Part.LOSS, "left"), watch.part(Part.DATA_WAIT)):
                assert watch.place.words == "waiting for data"
                device.seconds += 0.25
            assert watch.place.words == "left"
        device.seconds += 0.5
    assert device.looks == 0
    assert watch.clock.read() == {Part.PASS_1: 6.0, Part.DATA_WAIT: 0.5, Part.LOSS: 0.0, RunPart.OTHER: 1.0}
    assert watch.clock.read() == {RunPart.OTHER: 0.0}


def test_what_fails_in_leaving_is_no_part_of_it(diary: Diary) -> None:
    watch = RunWatch(diary, Device().clock())
    reducing = Place(Part.COLLECTIVES, "reducing gradients")
    with pytest.raises(KeyError), watch.leaving(Part.COLLECTIVES, reducing, watch.part(Part.PASS_2)):
        raise KeyError
    assert diary.places == []
