"""What a step needs and what the device can do: useful FLOPs, and the speed of matrix products."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from eval.fake_run import fake_run
from eval.rehearsal import random_batch
from eval.script import Nobody
from eval.stopwatch import Stopwatch
from modules.arguments import Arguments

SIDE = {"cuda": 8192, "cpu": 2048}  # of the square matrices: large enough to be at full speed
SMALLEST_SIDE = 256
REPETITIONS = 10
SLOW = 0.02  # seconds for one product


class FlopMeter(TorchDispatchMode):
    """FLOPs of all products within, forward and backward: convolutions and matrices.

    `FlopCounterMode` of torch counts the same by module, which forbids gradients at leaf tensors.
    Attention on the CPU is not in torch's registry: it is 0.1 % of a VAE's step at 256 x 256.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Calls `function` and counts its products."""
        outputs = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=outputs)
        return outputs


def useful_flops(args: Arguments) -> int:
    """FLOPs of one optimizer step without recomputation, two for each multiplication.

    The step is run with fake tensors: nothing is computed. args: --lpips_weights names a file.
    """
    precision = replace(args.precision, compile=False, recompute="none",
                        gradient_checkpointing=False, use_8bit_adam=False)  # fmt: skip
    single = replace(args.optimization, gradient_accumulation_steps=1)
    plain = replace(args, precision=precision, optimization=single)
    meter = FlopMeter()
    with fake_run(plain, meter) as (script, run):
        run.loader = [random_batch(run, single.train_batch_size, args.data.resolution)]
        script.train(run, Nobody())
    return meter.total * args.optimization.gradient_accumulation_steps


def peak_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Speed of the fastest of a few large matrix products: what `mfu` is a fraction of.

    The matrices grow to SIDE, or until one product takes SLOW seconds: a device without units for
    `dtype` would take minutes.
    """
    side = SMALLEST_SIDE
    seconds = _fastest_product(side, device, dtype)
    while side < SIDE[device.type] and seconds < SLOW:
        side *= 2
        seconds = _fastest_product(side, device, dtype)
    return 2 * side**3 / seconds


def _fastest_product(side: int, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds for the product of two square matrices."""
    matrix = torch.randn(side, side, device=device).to(dtype)
    stopwatch = Stopwatch(device)
    matrix @ matrix
    marks = [stopwatch.mark()]
    for _ in range(REPETITIONS):
        matrix @ matrix
        marks.append(stopwatch.mark())
    return min(stopwatch.milliseconds(marks)) / 1e3
