"""Rows of a global batch: indices of their queries, targets and hard negatives, and a teacher's data."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Rows of a global batch as indices into the representation matrix.

    Identical items share one representation, so two rows with the same target have the same index in `positive`.

    Attributes:
        query: Index of each pair's query, shape (batch,), int64.
        positive: Index of each pair's target, shape (batch,), int64.
        negative: Index of each hard negative, ordered by row, shape (hard negatives,), int64; a row may have any number
            of them. None: no hard negatives.
        negative_row: Row of each hard negative, shape (hard negatives,), int64.
        ignored: (row, item) couples, shape (couples, 2), int64: items that a teacher finds too similar to be negatives
            of a row. They are left out of that row's denominator.
        teacher_positive: A teacher's similarity of each pair's query and target, shape (batch,), float32; NaN if it has
            none.
        teacher_negative: A teacher's similarity of each hard negative and its row's query, shape (hard negatives,),
            float32; NaN if it has none.
        temperature_group: Index of the learned temperature that each row uses, shape (batch,), int64.

    Raises:
        ValueError: The shapes do not match.
    """

    query: Tensor
    positive: Tensor
    negative: Tensor | None = None
    negative_row: Tensor | None = None
    ignored: Tensor | None = None
    teacher_positive: Tensor | None = None
    teacher_negative: Tensor | None = None
    temperature_group: Tensor | None = None

    def __post_init__(self) -> None:
        of_rows = (self.query, self.positive, self.teacher_positive, self.temperature_group)
        shapes = {tuple(each.shape) for each in of_rows if each is not None}
        if len(shapes) > 1:
            raise ValueError(f"queries and targets of pairs must have the same shape, not {sorted(shapes)}")
        if (self.negative is None) != (self.negative_row is None):
            raise ValueError("negative and negative_row must be given together: each hard negative belongs to a row")
        of_negatives = (self.negative, self.negative_row, self.teacher_negative)
        shapes = {tuple(each.shape) for each in of_negatives if each is not None}
        if len(shapes) > 1:
            raise ValueError(f"hard negatives, their rows and scores must have the same shape, not {sorted(shapes)}")
        if (self.teacher_negative is not None) and (self.negative is None or self.teacher_positive is None):
            raise ValueError(
                "teacher_negative needs hard negatives (negative) and scores of targets (teacher_positive)"
            )
        if self.ignored is not None and (self.ignored.dim() != 2 or self.ignored.shape[1] != 2):
            raise ValueError(f"ignored must have shape (couples, 2), not {tuple(self.ignored.shape)}")

    def to(self, device: torch.device) -> Pairs:
        """The same pairs on `device`."""
        moved = {
            each.name: value.to(device, non_blocking=True)
            for each in fields(self)
            if (value := getattr(self, each.name)) is not None
        }
        return Pairs(**moved)

    @property
    def column_items(self) -> Tensor:
        """Items that rows are compared with: all targets, then all hard negatives, shape (columns,)."""
        return self.positive if self.negative is None else torch.cat([self.positive, self.negative])
