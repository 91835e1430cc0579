"""What a step needs and what the device can do: useful FLOPs, and the speed of matrix products."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from eval.memory.fake_run import fake_run
from eval.rehearsal import random_batch
from eval.speed.script import train_on
from eval.speed.stopwatch import Stopwatch
from modules.config.arguments import Arguments

SMALLEST_SIDE, LARGEST_SIDE = 256, {"cuda": 8192, "cpu": 2048}  # of square matrices
REPETITIONS = 10
SLOW = 20  # milliseconds for one product


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

    The step is run with fake tensors: nothing is computed.
    """
    precision = replace(args.precision, recompute="none", gradient_checkpointing=False)
    single = replace(args.optimization, gradient_accumulation_steps=1)
    meter = FlopMeter()
    with fake_run(replace(args, precision=precision, optimization=single), meter) as (run, _):
        train_on(run, [random_batch(run, single.train_batch_size, args.data.resolution)])
    return meter.total * args.optimization.gradient_accumulation_steps


def peak_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Speed of the fastest of a few large matrix products: what `mfu` is a fraction of.

    The matrices grow until one product takes SLOW: a device without units for `dtype` would take
    minutes.
    """
    side, milliseconds = SMALLEST_SIDE, fastest_product(SMALLEST_SIDE, device, dtype)
    while side < LARGEST_SIDE[device.type] and milliseconds < SLOW:
        side *= 2
        milliseconds = fastest_product(side, device, dtype)
    return 2 * side**3 / milliseconds * 1e3


def fastest_product(side: int, device: torch.device, dtype: torch.dtype) -> float:
    """Milliseconds for the product of two square matrices."""
    matrix, stopwatch = torch.randn(side, side, device=device).to(dtype), Stopwatch(device)
    matrix @ matrix
    marks = [stopwatch.mark()]
    for _ in range(REPETITIONS):
        matrix @ matrix
        marks.append(stopwatch.mark())
    return min(stopwatch.milliseconds(marks))
