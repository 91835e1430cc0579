"""How much GPU memory training takes, predicted without one: states to the byte, then the peak."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eval.fake_run import fake_run
from eval.script import Nobody, random_batch
from eval.textbook_step import TextbookTrainer
from modules.arguments import Arguments
from modules.run import Run

TEXTBOOK = "textbook"
BLOCK = 512  # bytes; CUDA's caching allocator rounds every tensor up to these
CONTEXT = 0.6e9  # bytes outside the allocator: CUDA's context, cuDNN's and cuBLAS's kernels
OVERHEAD = 0.10  # of the peak: fragmentation of the allocator, and the convolutions' workspaces
STATES_8BIT_BLOCK = 256  # elements that share one float32 scale in 8-bit AdamW


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


@dataclass(frozen=True)
class Peak:
    """The predicted peak of one training step, in bytes; `lpips_slice` None is the whole batch.

    recompute: "none", "norm" or "full", or TEXTBOOK for the step of `eval.textbook_step`.
    """

    resolution: int
    batch_size: int
    recompute: str
    lpips_slice: int | None
    allocated: int

    @property
    def on_card(self) -> float:
        """What the card must have for it, by the assumptions CONTEXT and OVERHEAD."""
        return self.allocated * (1 + OVERHEAD) + CONTEXT


def state_bytes(run: Run) -> dict[str, int]:
    """Exact bytes of what a run keeps between steps or, for gradients, at the end of a backward.

    `run` is real or fake, and has taken one step, in which the optimizers make their moments.
    """
    networks = {"VAE": (run.raw_vae, run.optimizer_vae)}
    if run.args.discriminator.enabled:
        networks["discriminator"] = (run.raw_discriminator, run.optimizer_disc)
    found = {}
    for name, (network, optimizer) in networks.items():
        trained = [p for p in network.parameters() if p.requires_grad]
        found[f"{name}: weights"] = _bytes(network.parameters()) + _bytes(network.buffers())
        found[f"{name}: gradients"] = _bytes(trained)
        found[f"{name}: Adam's moments"] = _moments(run, optimizer, trained)
    if run.ema is not None:
        found["EMA"] = _bytes([*run.ema.averages, run.ema.num_updates])
    if run.perceptual is not None:
        found["LPIPS"] = _bytes(run.perceptual.parameters()) + _bytes(run.perceptual.buffers())
    return found


def _moments(run: Run, optimizer: Any, trained: list[nn.Parameter]) -> int:
    if run.args.precision.use_8bit_adam:
        return sum(map(_moments_8bit, trained))
    return _bytes(value for state in optimizer.state.values() for value in state.values())


def _moments_8bit(parameter: nn.Parameter) -> int:
    """bitsandbytes keeps tensors of fewer than 4096 elements in float32."""
    count = parameter.numel()
    return 8 * count if count < 4096 else 2 * (count + 4 * -(-count // STATES_8BIT_BLOCK))


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def plan(
    args: Arguments, resolutions: Iterable[int], batch_sizes: Iterable[int]
) -> tuple[dict[str, int], list[Peak]]:
    """The states, and the peak of every resolution and batch size under the options of `args`.

    args: --lpips_weights must name a file, of any weights. The discriminator is at work.
    """
    saved = args.precision.use_8bit_adam
    meter, peaks = AllocationMeter(), []
    with fake_run(_plain(args), meter) as (script, run):
        _step(script, run, 1, _smallest(run))
        run.args = args
        states = state_bytes(run)
        moments = [run.optimizer_vae.state, run.optimizer_disc.state]
        kept = sum(_bytes(v for s in state.values() for v in s.values()) for state in moments)
        excess = kept - sum(v for k, v in states.items() if "moments" in k) if saved else 0
        precision = args.precision
        for resolution, batch_size in product(resolutions, batch_sizes):
            meter.peak = meter.now
            _step(script, run, batch_size, resolution)
            options = precision.recomputed, precision.perceptual_slice_size
            peaks.append(Peak(resolution, batch_size, *options, meter.peak - excess))
    return states, peaks


def plan_textbook(
    args: Arguments, resolutions: Iterable[int], batch_sizes: Iterable[int]
) -> list[Peak]:
    """The peaks of a plain step on the same networks; arguments as of `plan`."""
    meter, peaks = AllocationMeter(), []
    with fake_run(_plain(args), meter) as (_, run):
        ours = meter.now
        with warnings.catch_warnings():  # its networks are copied, which looks at their memory
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            trainer = TextbookTrainer(run)
        count = run.accelerator.gradient_accumulation_steps
        trainer.step([random_batch(run, 1, _smallest(run))])  # makes the optimizers' moments
        for resolution, batch_size in product(resolutions, batch_sizes):
            meter.peak = meter.now
            trainer.step([random_batch(run, batch_size, resolution)] * count)
            peaks.append(Peak(resolution, batch_size, TEXTBOOK, None, meter.peak - ours))
    return peaks


def _plain(args: Arguments) -> Arguments:
    """Without what works on real tensors alone."""
    return replace(args, precision=replace(args.precision, use_8bit_adam=False, compile=False))


def _smallest(run: Run) -> int:
    """A resolution at which a step costs nothing, and which both networks can take."""
    levels = len(run.raw_vae.vae.config.block_out_channels)
    return 2 ** (max(levels, run.args.discriminator.disc_num_layers) + 2)


def _step(script: ModuleType, run: Run, batch_size: int, resolution: int) -> None:
    batch = random_batch(run, batch_size, resolution)
    run.loader = [batch] * run.accelerator.gradient_accumulation_steps
    script.train(run, Nobody())
