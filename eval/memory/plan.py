"""How much GPU memory a run takes, predicted without one: states to the byte, then the peaks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eval.metrics.networks import Networks
from eval.rehearsal import moments, parts
from modules.config.arguments import Arguments
from modules.training.run import Run

BLOCK = 512  # bytes; CUDA's caching allocator rounds every tensor up to these
CONTEXT = 0.6e9  # bytes outside the allocator: CUDA's context, cuDNN's and cuBLAS's kernels
OVERHEAD = 0.10  # of the peak: fragmentation of the allocator, and the convolutions' workspaces


class AllocationMeter(TorchDispatchMode):
    """Bytes of all storages that are alive, and the most there have been, in blocks of the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Calls `function` and counts the storages that it made."""
        outputs = function(*args, **(kwargs or {}))
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor):
                self._count(output.untyped_storage())
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = -(-storage.nbytes() // BLOCK) * BLOCK
            self.now += self.alive[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.alive.pop(key)

    def peak_of(self, act: Callable[[], object]) -> int:
        """The most bytes that there are while `act` works, those before it included."""
        self.peak = self.now
        act()
        return self.peak


@dataclass(frozen=True)
class Peaks:
    """Bytes allocated at the worst moment of each part of a run; `lpips_slice` None is all images.

    recompute: "none", "norm" or "full", or the name of another step.
    """

    resolution: int
    batch_size: int
    recompute: str
    lpips_slice: int | None
    parts: Mapping[str, int]

    @classmethod
    def of(cls, args: Arguments, recompute: str, parts: Mapping[str, int]) -> Peaks:
        """Those of a run by `args`."""
        side, batch = max(args.data.training_resolutions), args.optimization.train_batch_size
        at_once = args.precision.perceptual_slice_size or batch
        return cls(side, batch, recompute, at_once if at_once < batch else None, parts)

    @property
    def largest(self) -> str:
        """The part that needs most."""
        return max(self.parts, key=self.parts.get)

    @property
    def allocated(self) -> int:
        """What it needs."""
        return self.parts[self.largest]

    @property
    def on_card(self) -> float:
        """What the card must have for it, by the assumptions CONTEXT and OVERHEAD."""
        return self.allocated * (1 + OVERHEAD) + CONTEXT


def peaks_of(
    run: Run, judges: Networks, meter: AllocationMeter, train: Callable[[Run], object]
) -> Peaks:
    """What each part of a `fake_run` needs at its worst moment.

    meter: one of its modes. train: the script's loop.
    """
    with moments(run):
        found = {name: meter.peak_of(part) for name, part in parts(run, train, judges).items()}
    return Peaks.of(run.args, run.args.precision.recomputed, found)
