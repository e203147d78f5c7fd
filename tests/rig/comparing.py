"""Comparing numbers that different kernels or orders of summation computed."""

from __future__ import annotations

from typing import Any

import torch


def relative_error(actual: Any, expected: Any) -> float:
    """The largest difference of two tensors, arrays or numbers over the largest magnitude of `expected`.

    Rounding errors grow with the size of what is added up, and which ones are made depends on the processor. Values
    that are not finite must be the same in the same places.

    Returns:
        The error; infinite if shapes or values that are not finite differ, or if `expected` is zero and `actual` not.
    """
    ours = torch.as_tensor(actual).detach().to("cpu", torch.float64)
    theirs = torch.as_tensor(expected).detach().to("cpu", torch.float64)
    if ours.shape != theirs.shape:
        return float("inf")
    finite = theirs.isfinite()
    if not torch.equal(ours[~finite].nan_to_num(nan=0.5), theirs[~finite].nan_to_num(nan=0.5)):
        return float("inf")
    ours, theirs = ours[finite], theirs[finite]
    difference = float((ours - theirs).abs().max()) if len(theirs) else 0.0
    scale = float(theirs.abs().max()) if len(theirs) else 0.0
    if difference == 0:
        return 0.0
    return difference / scale if scale > 0 and difference == difference else float("inf")


def assert_close_relative(actual: Any, expected: Any, relative: float, name: str = "values") -> None:
    """Fails if `relative_error` is more than `relative`."""
    error = relative_error(actual, expected)
    assert error <= relative, f"{name}: relative error {error:.2e}, limit {relative:.0e}"
