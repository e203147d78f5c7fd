"""One rank that trains as in the example of CachedStep's docstring, and again with one graph."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rig.comparing import relative_error
from trials.rig.patience import COLLECTIVE_SECONDS
from vlm2vec.contrastive import CachedStep, Chunk, ContrastiveLoss, Pairs, StepChunks, StepLayout
from vlm2vec.contrastive.watch import AnyPart, Place, Watch
from vlm2vec.ranks import close_ranks, initialize_ranks

PAIRS, FEATURES, TEMPERATURE = 11, 5, 0.02  # 22 items: the example's chunks of 8 end with a ragged one


class Encoder(nn.Module):
    """Any encoder: its argument is called as in the example."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(FEATURES, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.linear(tokens), dim=-1)


class Diary(Watch):
    """Records parts, and the places inside them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._part = "outside"

    @contextmanager
    def part(self, part: AnyPart, place: Place | None = None) -> Iterator[None]:
        before, self._part = self._part, part.value
        with super().part(part, place):
            yield
        self._part = before

    def at(self, place: Place) -> None:
        marks = [mark for mark, is_so in (("kept", place.is_kept), ("pause", place.is_pause)) if is_so]
        self.lines.append(f"{self._part}: {place.part.value}: {place.words}{''.join(f' [{mark}]' for mark in marks)}")


def run_example(engine: Any, tokens: Tensor) -> tuple[Tensor, int, list[str]]:
    """Executes every statement of the docstring, then its `train_step`: the loss, and how many chunks there were."""
    padding = torch.zeros(1, FEATURES)
    seen: list[int] = []

    class CountingChunks(StepChunks):
        @classmethod
        def of(cls, chunks: Any, keep_graphs: int = 0) -> StepChunks:
            seen.append(len(chunks))
            return StepChunks.of(chunks, keep_graphs)

    names: dict[str, Any] = {
        **{"torch": torch, "dist": dist, "engine": engine, "padding": padding, "Chunk": Chunk, "Pairs": Pairs},
        **{"CachedStep": CachedStep, "ContrastiveLoss": ContrastiveLoss, "StepLayout": StepLayout},
        "StepChunks": CountingChunks,
    }
    for example in doctest.DocTestParser().get_examples(CachedStep.__doc__ or ""):
        exec(example.source, names)
    loss = names["train_step"](engine, names["cached_step"], tokens, 0)
    diary = Diary()
    watched = CachedStep(engine, ContrastiveLoss(TEMPERATURE), Chunk({"tokens": padding}, 1), watch=diary)
    names["train_step"](SimpleNamespace(step=lambda: None), watched, tokens, 1)  # without an update
    return loss, seen[0], diary.lines


def main() -> None:
    """Prints how far the example's loss and gradient are from those of a plain step in float64, relative to its own."""
    initialize_ranks(COLLECTIVE_SECONDS)
    import deepspeed

    tokens = torch.randn(2 * PAIRS, FEATURES, generator=torch.Generator().manual_seed(1))
    plain = Encoder().double()
    rows = plain(tokens.double())
    expected = F.cross_entropy(rows[:PAIRS] @ rows[PAIRS:].T / TEMPERATURE, torch.arange(PAIRS))
    expected.backward()
    torch.optim.SGD(plain.parameters(), lr=1.0).step()

    encoder = Encoder()
    start = [parameter.detach().clone() for parameter in encoder.parameters()]
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "SGD", "params": {"lr": 1.0}},  # weights move by their gradient
        "zero_optimization": {"stage": 2},
        "gradient_clipping": 0.0,  # DeepSpeed clips to 1 by default
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=encoder, model_parameters=list(encoder.parameters()), config=config)
    loss, num_chunks, places = run_example(engine, tokens)
    moved, wanted = (
        torch.cat([(after - before).detach().flatten() for before, after in zip(start, each.parameters(), strict=True)])
        for each in (encoder, plain)
    )
    result = {
        "chunks": num_chunks,
        "places": places,
        "loss error": relative_error(loss, expected),
        "gradient error": relative_error(moved, wanted),
        "gradient": float(wanted.abs().max()),
    }
    print("result", json.dumps(result))
    close_ranks()


if __name__ == "__main__":
    main()
