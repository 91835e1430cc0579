"""The exponential moving average of the trained weights, in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Averages the parameters of `module` that require gradients; frozen ones equal their average.

    The average's half-life is `half_life` (above 0) times the updates so far: whatever the run's
    length, it reaches back over the same share of it, and has forgotten its start (Karras et al.
    2022, appendix F.2; 2024, section 3). It grows no longer than `decay` for each update allows.
    All state lives on the device: an update asks the host nothing.
    """

    def __init__(self, module: nn.Module, half_life: float, decay: float) -> None:
        self.half_life = half_life
        self.decay = decay
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.averages = [p.detach().clone().float() for p in self.parameters]
        self.num_updates = torch.zeros((), device=self.averages[0].device)

    @torch.no_grad()
    def update(self, skip: Tensor) -> None:
        """One step towards the parameters, or none where `skip` (a scalar on the device) is 1."""
        remembered = self.half_life * (self.num_updates + 1)
        rate = -torch.expm1(-math.log(2) / remembered)
        rate = rate.clamp(min=1 - self.decay) * (1 - skip)
        distance = torch._foreach_sub(self.parameters, self.averages)
        torch._foreach_mul_(distance, rate)
        torch._foreach_add_(self.averages, distance)
        self.num_updates += 1 - skip

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages stand in the network in place of the trained weights; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for index, parameter in enumerate(self.parameters):
            parameter.data, self.averages[index] = self.averages[index], parameter.data

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name, and the number of updates."""
        averages = dict(zip(self.names, self.averages, strict=True))
        return {"num_updates": self.num_updates, **averages}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copies `state` in place. Raises KeyError when a parameter is missing from it."""
        self.num_updates.copy_(state["num_updates"])
        for name, average in zip(self.names, self.averages, strict=True):
            average.copy_(state[name])
