"""The cached step as in its docstring, and inputs that its parts refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from trials.rig.forked import run_ranks
from vlm2vec.contrastive import Chunk, Phase, StepChunks
from vlm2vec.contrastive.slots import Slots, agree_on_slots

pytestmark = pytest.mark.numeric

PADDING = Chunk({}, 1, names=("padding",))


def chunk(has_image: bool = False) -> Chunk:
    return Chunk({"tokens": torch.zeros(2, 3)}, 2, has_image)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    (output,) = run_ranks(1, ["-m", "tests.contrastive.example_worker"], tmp_path_factory.mktemp("example"))
    (line,) = [line for line in output.splitlines() if line.startswith("result ")]
    parsed: dict[str, Any] = json.loads(line.removeprefix("result "))
    return parsed


def test_the_docstrings_example_steps_as_one_graph_does(result: dict[str, Any]) -> None:
    """As written, on an engine around a linear encoder; plain SGD with rate 1 moves the weights by the gradient."""
    assert result["chunks"] == 3
    assert result["gradient"] > 0.1
    assert result["gradient error"] < 1e-6
    assert result["loss error"] < 1e-6


def test_a_step_names_its_parts_and_places(result: dict[str, Any]) -> None:
    """Three chunks, the last of them with its graph kept: the part that is timed, the part of the place, its words."""
    assert result["places"] == [
        "collectives: collectives: comparing chunks",
        "data_wait: pass_1: pass 1, chunk 1 of 2, waiting for its data [pause]",
        "pass_1: pass_1: pass 1, chunk 1 of 2",
        "data_wait: pass_1: pass 1, chunk 2 of 2, waiting for its data [pause]",
        "pass_1: pass_1: pass 1, chunk 2 of 2",
        "data_wait: pass_1: pass 1 with graph, chunk 1 of 1, waiting for its data [kept] [pause]",
        "pass_1: pass_1: pass 1 with graph, chunk 1 of 1 [kept]",
        "loss: loss: loss",
        "pass_2: pass_2: pass 2, kept chunk 1 [kept]",
        "data_wait: pass_2: pass 2, chunk 1 of 2, waiting for its data [pause]",
        "pass_2: pass_2: pass 2, chunk 1 of 2",
        "data_wait: pass_2: pass 2, chunk 2 of 2, waiting for its data [pause]",
        "pass_2: pass_2: pass 2, chunk 2 of 2",
        "collectives: collectives: reducing gradients",
    ]


def test_a_phase_counts_its_chunks() -> None:
    phase = Phase.of([chunk(True), chunk(True), chunk()])
    assert (phase.num_chunks, phase.num_image_chunks) == (3, 2)


def test_a_phase_refuses_images_after_text() -> None:
    with pytest.raises(ValueError, match="chunks with images must come before chunks without"):
        Phase.of([chunk(True), chunk(), chunk(True)])


@pytest.mark.parametrize(("keep_graphs", "repeated", "kept"), [(0, 3, 0), (1, 2, 1), (3, 0, 3), (5, 0, 3)])
def test_the_last_chunks_keep_their_graphs(keep_graphs: int, repeated: int, kept: int) -> None:
    chunks = [chunk(True), chunk(), chunk()]
    step = StepChunks.of(chunks, keep_graphs)
    assert list(step.encode.chunks) == list(step.repeat.chunks) == chunks[:repeated]
    assert list(step.keep.chunks) == chunks[repeated:]
    assert [phase.num_chunks for phase in step.phases] == [repeated, kept, repeated]


def test_slots_are_filled_with_own_chunks_and_then_padding() -> None:
    own = chunk(True)
    filled = list(Slots(count=3, with_images=2).fill(Phase.of([own]), PADDING))
    assert filled == [(own, True, True), (PADDING, False, True), (PADDING, False, False)]


@pytest.mark.parametrize(("announced", "brought"), [(2, 1), (1, 2), (0, 1), (1, 0)])
def test_a_phase_with_an_unannounced_number_of_chunks_is_refused(announced: int, brought: int) -> None:
    """Chunks may be produced while the step runs, so nobody knows before."""
    phase = Phase((chunk() for _ in range(brought)), announced, 0)
    with pytest.raises(RuntimeError, match=f"expected {announced} chunks in this phase, got"):
        list(Slots(count=2, with_images=0).fill(phase, PADDING))


def test_one_process_agrees_with_itself() -> None:
    chunks = StepChunks.of([chunk(True), chunk(), chunk()], keep_graphs=1)
    assert agree_on_slots(chunks, digest=3, device=torch.device("cpu")) == (Slots(2, 1), Slots(1, 0), Slots(2, 1))


def test_a_chunk_without_images_brings_its_dummy_where_images_take_part() -> None:
    device = torch.device("cpu")
    dummy = {"image": torch.zeros(1), "grid": (1, 1)}
    text = Chunk({"tokens": torch.zeros(2, 3)}, 2, dummy_inputs=dummy)
    assert text.arguments(device, dummy_image=False).keys() == {"tokens"}
    assert text.arguments(device, dummy_image=True).keys() == {"tokens", "image", "grid"}
    assert chunk(has_image=True).arguments(device, dummy_image=True).keys() == {"tokens"}
    with pytest.raises(ValueError, match="give it dummy_inputs"):
        chunk().arguments(device, dummy_image=True)
