"""Running means of what is logged, summed on the device and read by the host at log points only."""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator
from torch import Tensor


class Meter:
    """Means over everything added since the last flush; values that are not finite are left out.

    The sums stay on the device: adding is asynchronous, and `flush` is the one place where the host
    waits. Its state is part of a checkpoint, so a resumed run logs the rows that an uninterrupted
    one would have logged.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.sums: dict[str, Tensor] = {}  # "a b": [[sum of a, count of a], [sum of b, ...]]
        self.images = 0  # of this process since the clock was started, for the speed
        self.started = time.monotonic()

    def add(self, **values: Tensor) -> None:
        """Adds one observation of each named scalar tensor."""
        names = " ".join(values)
        observed = torch.stack([value.detach().float() for value in values.values()])
        finite = torch.isfinite(observed)
        pairs = torch.stack([torch.where(finite, observed, 0.0), finite.float()], dim=1)
        self.sums[names] = self.sums[names] + pairs if names in self.sums else pairs

    def flush(self) -> dict[str, float]:
        """The means over all processes, and images per second since the last flush; starts anew.

        A name whose every value was not finite is left out. Collective: every process must call it.
        """
        means = {}
        if self.sums:
            totals = self.accelerator.reduce(torch.cat(list(self.sums.values())), "sum")
            names = " ".join(self.sums).split()
            means = {
                name: total / count
                for name, (total, count) in zip(names, totals.nan_to_num().tolist(), strict=True)
                if count
            }
        now = time.monotonic()
        speed = self.images * self.accelerator.num_processes / max(now - self.started, 1e-9)
        self.sums, self.images, self.started = {}, 0, now
        return {**means, "images_per_s": speed}

    def restart_clock(self) -> None:
        """Keeps a pause (a validation, a checkpoint) out of the speed."""
        self.images, self.started = 0, time.monotonic()

    def state_dict(self) -> dict[str, list[list[float]]]:
        """The sums and counts, as plain numbers; finite, even where finite values sum to more."""
        return {names: pairs.nan_to_num().tolist() for names, pairs in self.sums.items()}

    def load_state_dict(self, state: dict[str, list[list[float]]]) -> None:
        """Continues from `state_dict`'s sums."""
        device = self.accelerator.device
        self.sums = {names: torch.tensor(pairs, device=device) for names, pairs in state.items()}
