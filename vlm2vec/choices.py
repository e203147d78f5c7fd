"""Values and defaults of flags that the library shares; a module without torch, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# What a homogeneous unit of the order draws from, see `vlm2vec.batches.groups`.
SUBSET, META_TASK = GROUPINGS = ("subset", "meta_task")
# How an epoch visits a subset, see `vlm2vec.batches.mixture`.
RANDOM, BLOCK = ORDERS = ("random", "block")
# What dropout acts on with DoRA, see `vlm2vec.dora`.
DROPOUT_PLACES = ("input", "adapter")


@dataclass(frozen=True)
class LoraSettings:
    """A new adapter (https://arxiv.org/abs/2106.09685, DoRA: https://arxiv.org/abs/2402.09353).

    The defaults are the original's.

    Attributes:
        r: Rank.
        alpha: The update is scaled by alpha / r.
        dropout: Probability of dropout on the adapter's input.
        dropout_on: What dropout acts on with DoRA, see `install_dora`.
        target_modules: Linear layers to adapt, by the last part or the last two parts of their names: "o_proj",
            "mlp.fc1". Each must occur. None: the family's own choice.
        use_dora: Learn the magnitudes of the weights too.
        init: How A is drawn: "gaussian" or "kaiming".
        seed: Seed of the initial adapter, so that every rank starts from the same one.
    """

    r: int = 16
    alpha: float = 64
    dropout: float = 0.1
    dropout_on: str = "input"
    target_modules: Sequence[str] | None = None
    use_dora: bool = True
    init: str = "gaussian"
    seed: int = 42
