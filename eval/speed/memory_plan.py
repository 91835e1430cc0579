"""How much GPU memory a run takes, predicted without one: states to the byte, then the peaks."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train_vae
from eval.metrics.networks import Networks
from eval.rehearsal import TRAINING, largest_batch, moment_bytes, moments, parts
from eval.speed.fake_run import fake_run
from eval.speed.textbook_step import TextbookTrainer
from modules.config.arguments import Arguments
from modules.training.run import Run

TEXTBOOK = "textbook"
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

    recompute: "none", "norm" or "full", or TEXTBOOK for the step of `eval.speed.textbook_step`.
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


def state_bytes(run: Run, judges: Networks) -> dict[str, int]:
    """Exact bytes of what a run keeps between steps or, for gradients, at the end of a backward."""
    networks = {"VAE": run.raw_vae}
    if run.args.discriminator.enabled:
        networks["discriminator"] = run.raw_discriminator
    found = {}
    for name, network in networks.items():
        trained = [p for p in network.parameters() if p.requires_grad]
        found[f"{name}: weights"] = _bytes(network.parameters()) + _bytes(network.buffers())
        found[f"{name}: gradients"] = _bytes(trained)
        found[f"{name}: Adam's moments"] = sum(moment_bytes(p, run.args) for p in trained)
    if run.ema is not None:
        found["EMA"] = _bytes([*run.ema.averages, run.ema.num_updates])
    lpips = run.perceptual or next(iter(judges.lpips.values()), None)
    for name, network in (("LPIPS", lpips), ("Inception", judges.inception)):
        if network is not None:
            found[name] = _bytes(network.parameters()) + _bytes(network.buffers())
    return found


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def plan(args: Arguments) -> tuple[dict[str, int], Peaks]:
    """The states of a run by `args`, and what each of its parts needs at its worst moment."""
    meter = AllocationMeter()
    with _described_run(args, meter) as (run, judges), moments(run):
        to_try = parts(run, partial(train_vae.train, watch=None), judges)
        found = {name: meter.peak_of(part) for name, part in to_try.items()}
        return state_bytes(run, judges), Peaks.of(args, args.precision.recomputed, found)


def plan_textbook(args: Arguments) -> Peaks:
    """The peak of a plain step on the same networks."""
    meter = AllocationMeter()
    with _described_run(args, meter) as (run, _):
        ours = meter.now
        with warnings.catch_warnings():  # its networks are copied, which looks at their memory
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            trainer = TextbookTrainer(run)
        batch = largest_batch(run)
        trainer.step([batch])  # makes the optimizers' moments
        # More micro-batches than two need no more memory.
        count = min(2, args.optimization.gradient_accumulation_steps)
        peak = meter.peak_of(partial(trainer.step, [batch] * count))
        return Peaks.of(args, TEXTBOOK, {TRAINING: peak - ours})


@contextmanager
def _described_run(args: Arguments, meter: AllocationMeter) -> Iterator[tuple[Run, Networks]]:
    """A fake run that says of itself what was asked for, such as 8-bit moments."""
    with fake_run(args, meter) as (run, judges):
        run.args = args
        yield run, judges
