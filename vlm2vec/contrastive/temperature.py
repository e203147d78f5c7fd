"""Learned temperature of the contrastive loss, trained with the encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from vlm2vec.contrastive.gather import is_distributed

_VALUE = "log_temperature"
_MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state of a parameter, besides the number of steps


class LearnedTemperature:
    r"""A temperature tau = exp(theta), with theta trained by AdamW (CLIP, arXiv 2103.00020, section 2.5).

    The loss's backward pass adds this rank's share of the gradient to theta's; `step` sums the shares over the ranks
    and updates, so that all ranks, which start from the same value, keep the same value. Theta has a separate
    optimizer, without weight decay, because ZeRO partitions the engine's parameters and the loss is not part of the
    engine. Its gradient does not count in the clipped norm.

    After an update, tau is clamped to [minimum, maximum]. The default minimum is CLIP's (a scale of at most 100).
    Clamping the parameter instead of its use keeps a gradient at the boundary, so that tau can leave it again.

    With `groups`, theta is a vector: each group of rows (a subset, a meta-task) has one temperature, selected by
    `Pairs.temperature_group` (RzenEmbed, arXiv 2510.27350). One AdamW updates all of them; a group without rows in a
    step has gradient zero and changes only by its momentum.

    When to use it: to find a suitable temperature for a new mixture of data, or if tasks differ in how far apart their
    matches and negatives are. VLM2Vec trains with a fixed 0.02.

    Args:
        initial: tau at the start.
        minimum: Smallest tau.
        maximum: Largest tau.
        betas: AdamW's decay rates of the moments.
        device: Device of the loss.
        group: The process group of the ranks; the default group if None.
        groups: Names of the groups of rows with one temperature each; empty if all rows share one.

    Raises:
        ValueError: 0 < minimum <= initial <= maximum < infinity does not hold.

    Examples:
        >>> import torch
        >>> from vlm2vec.contrastive import ContrastiveLoss, Pairs
        >>> temperature = LearnedTemperature(initial=0.5)
        >>> loss_fn = ContrastiveLoss(temperature)
        >>> pairs = Pairs(query=torch.tensor([0, 1]), positive=torch.tensor([2, 3]))
        >>> loss, _ = loss_fn(torch.eye(2).repeat(2, 1), pairs, range(2))  # every query equals its target
        >>> loss.backward()
        >>> temperature.step(learning_rate=0.1)
        >>> round(temperature.value.item(), 4)  # sharper is better here: one step of 0.1 on a log scale
        0.4524
    """

    def __init__(
        self,
        initial: float = 0.02,
        minimum: float = 0.01,
        maximum: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        device: torch.device | str = "cpu",
        group: dist.ProcessGroup | None = None,
        groups: Sequence[str] = (),
    ) -> None:
        if not 0 < minimum <= initial <= maximum < math.inf:
            raise ValueError(
                f"the initial temperature {initial} must be within the positive range [{minimum}, {maximum}]"
            )
        self._log_range = (math.log(minimum), math.log(maximum))
        self._group = group
        self.groups = tuple(groups)
        start = [math.log(initial)] * len(groups) if groups else math.log(initial)
        self.log_temperature = torch.tensor(start, dtype=torch.float32, device=device, requires_grad=True)
        # Set before the first backward pass, because a rank without rows adds no gradient but joins the sum.
        self.log_temperature.grad = torch.zeros_like(self.log_temperature)
        self._optimizer = torch.optim.AdamW([self.log_temperature], lr=0.0, betas=betas, weight_decay=0.0)

    @property
    def value(self) -> Tensor:
        """tau, detached, float32, a scalar or shape (groups,); on the device, so that reading it does not wait."""
        return self.log_temperature.detach().exp()

    def step(self, learning_rate: float) -> None:
        """Updates with the gradient of all ranks and clears it; a collective of one number per temperature.

        Args:
            learning_rate: Learning rate of the logarithm of tau: a rate of 0.001 changes tau by about 0.1 % per step.
        """
        gradient = self.log_temperature.grad
        assert gradient is not None
        if is_distributed(self._group):
            dist.all_reduce(gradient, op=dist.ReduceOp.SUM, group=self._group)
        for parameter_group in self._optimizer.param_groups:
            parameter_group["lr"] = learning_rate
        self._optimizer.step()
        with torch.no_grad():
            self.log_temperature.clamp_(*self._log_range)
        gradient.zero_()

    def drop_gradient(self) -> None:
        """Clears the gradient of a step that updates nothing."""
        assert self.log_temperature.grad is not None
        self.log_temperature.grad.zero_()

    def state_dict(self) -> dict[str, float]:
        """Value and AdamW's moments as plain numbers that survive JSON bit for bit; waits for the device.

        Returns:
            Numbers by name. With groups, value and moments have one number per group, such as "log_temperature/GROUP".
        """
        moments = self._optimizer.state.get(self.log_temperature, {})
        nothing = torch.zeros_like(self.log_temperature)
        state = {"step": float(moments.get("step", 0.0))}
        for name, values in {
            _VALUE: self.log_temperature,
            **{each: moments.get(each, nothing) for each in _MOMENTS},
        }.items():
            state.update(zip(self._names(name), values.detach().reshape(-1).tolist(), strict=True))
        return state

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restores what `state_dict` returned; betas and range are not part of it.

        Raises:
            KeyError: A number is missing.
        """
        shape = self.log_temperature.shape
        value, *moments = (
            torch.tensor([state[each] for each in self._names(name)], dtype=torch.float32).reshape(shape)
            for name in (_VALUE, *_MOMENTS)
        )
        of_adam = {
            "step": torch.tensor(state["step"], dtype=torch.float32),
            **dict(zip(_MOMENTS, moments, strict=True)),
        }
        with torch.no_grad():
            self.log_temperature.copy_(value)
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": {0: of_adam}})

    def _names(self, quantity: str) -> list[str]:
        """Names of a quantity's numbers in the state."""
        return [f"{quantity}/{group}" for group in self.groups] or [quantity]
