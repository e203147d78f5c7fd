"""How long a run is: its flags, which exclude each other in pairs."""

from __future__ import annotations

# Two ways to say one thing; on the command line either replaces the other one of a recipe.
ALTERNATIVES = (("max_steps", "num_train_epochs"), ("warmup_steps", "warmup_ratio"))


def length_refusals(
    max_steps: int, num_train_epochs: float | None, warmup_steps: int, warmup_ratio: float | None
) -> list[tuple[bool, str]]:
    """What cannot work: whether it is so, and what to say. 0 steps stand for none given."""
    return [
        (
            max_steps != 0 and num_train_epochs is not None,
            f"--max_steps {max_steps} and --num_train_epochs {num_train_epochs} exclude each other: give one",
        ),
        (
            max_steps < (num_train_epochs is None),
            f"--max_steps {max_steps}: must be at least 1; or give --num_train_epochs",
        ),
        (
            num_train_epochs is not None and not 0 < num_train_epochs < float("inf"),
            f"--num_train_epochs {num_train_epochs}: must be positive",
        ),
        (warmup_steps < 0, f"--warmup_steps {warmup_steps}: must be at least 0"),
        (
            warmup_steps != 0 and warmup_ratio is not None,
            f"--warmup_steps {warmup_steps} and --warmup_ratio {warmup_ratio} exclude each other: give one",
        ),
        (
            warmup_ratio is not None and not 0 <= warmup_ratio <= 1,
            f"--warmup_ratio {warmup_ratio}: must be from 0 to 1",
        ),
    ]
