"""Collation of a chunk's items, shared by families: joins image rows in shared memory and pads token ids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.utils.data


class JoinedRows:
    """Joins the rows of a chunk's images in one tensor, each written only once.

    A loader's worker passes tensors through shared memory. If rows were joined elsewhere, they would be copied there,
    half a gigabyte for a chunk of photographs. `torch.utils.data.default_collate` does the same for tensors of equal
    shape. Rows on the meta device are joined there.

    Args:
        num_rows: Number of rows of all images, or more.
        dtype: Dtype of the joined tensor.
    """

    def __init__(self, num_rows: int, dtype: torch.dtype) -> None:
        self._num_rows, self._dtype, self._filled = num_rows, dtype, 0
        self._all: torch.Tensor | None = None

    def place(self, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Slice to write the next rows to, shape (n, ...); shapes may differ only in n, and the device must not."""
        if self._all is None:
            self._all = _empty((self._num_rows, *shape[1:]), self._dtype, device)
        start, self._filled = self._filled, self._filled + shape[0]
        return self._all[start : self._filled]

    def add(self, rows: torch.Tensor) -> None:
        """Appends rows; see `place`."""
        self.place(rows.shape, rows.device).copy_(rows)

    @property
    def joined(self) -> torch.Tensor | None:
        """The added rows, shape (rows, ...); None if there are none."""
        return None if self._all is None else self._all[: self._filled]


def padded_ids(rows: Sequence[torch.Tensor], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pads token ids of rows of different lengths on the right.

    Returns:
        input_ids int64 (n, L); attention_mask int64 (n, L), 1 on real tokens.
    """
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(list(rows), batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
    }


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]
