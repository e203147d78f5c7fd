"""Which representations form the rows of a global batch, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Which representations form the rows of a global batch.

    Identical items share one representation, so two rows with the same positive carry the same index in `positive`.

    Attributes:
        query: Row of the representation matrix that holds each pair's query, shape (batch,), int64.
        positive: The same for each pair's target, shape (batch,), int64.
        negative: The same for each hard negative, in the order of rows, shape (hard negatives,), int64; a row has any
            number of them. None: no hard negatives.
        negative_row: The row that each hard negative belongs to, shape (hard negatives,), int64.
        ignored: (row, item) couples, shape (couples, 2), int64: items that are no negatives of a row, because a teacher
            finds them too similar. They stay out of that row's denominator.
        teacher_positive: A teacher's similarity of each pair's query and target, shape (batch,), float32; NaN where it
            gave none.
        teacher_negative: The same of a row's query and each hard negative, shape (hard negatives,), float32.
        temperature_group: Which of several learned temperatures each row uses, shape (batch,), int64.

    Raises:
        ValueError: The shapes do not fit.
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
            raise ValueError(f"queries and targets of pairs must be equally many, not {sorted(shapes)}")
        if (self.negative is None) != (self.negative_row is None):
            raise ValueError("hard negatives need the row that each of them belongs to (negative_row)")
        of_negatives = (self.negative, self.negative_row, self.teacher_negative)
        shapes = {tuple(each.shape) for each in of_negatives if each is not None}
        if len(shapes) > 1:
            raise ValueError(f"hard negatives and their rows must be equally many, not {sorted(shapes)}")
        if (self.teacher_negative is not None) and (self.negative is None or self.teacher_positive is None):
            raise ValueError("a teacher's scores of hard negatives need hard negatives and scores of the targets")
        if self.ignored is not None and (self.ignored.dim() != 2 or self.ignored.shape[1] != 2):
            raise ValueError(f"ignored items are couples of row and item, not of shape {tuple(self.ignored.shape)}")

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
        """The items that rows are compared with: all targets, then all hard negatives; shape (columns,)."""
        return self.positive if self.negative is None else torch.cat([self.positive, self.negative])
