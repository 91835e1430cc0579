"""What a benchmark found, as text for a terminal and as data for JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import diffusers
import torch

from eval.memory.fake_run import DTYPES
from eval.speed.benchmark import OURS, Result
from eval.speed.stopwatch import Spread
from modules.config.arguments import Arguments


def benchmark_text(args: Arguments, result: Result) -> str:
    """Speed, memory, use of the device, time of each part, ratios."""
    memory, steps = result.peak_memory, len(result.milliseconds[OURS])
    dtype = str(DTYPES[args.precision.mixed_precision]).removeprefix("torch.")
    lines = [
        f"{result.device}, {versions()}",
        describe(args),
        "median (10th to 90th percentile):",
        f"  images/s      {result.images_per_s.text(2)}",
        f"  ms per step   {result.spread(OURS).text(1)}, {steps} steps",
        f"  TFLOP/s       {result.teraflops.text(2)}, {result.flops / 1e12:.2f} TFLOP a step",
        f"  of matmul     {100 * result.mfu:.1f} % of {result.peak_flops_per_s / 1e12:.2f} "
        f"TFLOP/s, measured in {dtype}",
    ]
    if memory[OURS] is not None:
        lines.append(f"  peak memory   {gigabytes(memory[OURS])} GB")
    phases = {phase: Spread.of(times) for phase, times in result.phases.items() if times}
    total = sum(spread.median for spread in phases.values())
    for phase, spread in phases.items():
        share = f"{100 * spread.median / total:5.1f} %"
        lines.append(f"    {phase:30s} {spread.text(1):>32s} ms  {share}")
    for name in result.rivals:
        lines.append(f"{name}: {result.spread(name).text(1)} ms per step")
        lines.append(f"  ours is {result.speedup(name).text(2)} times as fast")
        if memory[name] is not None:
            lines.append(
                f"  and needs {memory[OURS] / memory[name]:.2f} times the memory "
                f"({gigabytes(memory[OURS])} GB of {gigabytes(memory[name])} GB)"
            )
    return "\n".join(lines)


def benchmark_data(args: Arguments, result: Result) -> dict[str, Any]:
    """Everything measured, memory in bytes; `ratio` has one entry for each rival."""
    times = {"step": result.milliseconds[OURS], **result.phases}
    return {
        "device": result.device,
        "versions": versions(),
        "configuration": describe(args),
        "images_per_s": asdict(result.images_per_s),
        "ms": {name: asdict(Spread.of(ms)) for name, ms in times.items() if ms},
        "tflops_per_s": asdict(result.teraflops),
        "matmul_tflops_per_s": result.peak_flops_per_s / 1e12,
        "mfu": result.mfu,
        "peak_memory": result.peak_memory[OURS],
        "ratio": {
            name: {
                "speed": asdict(result.speedup(name)),
                "ms": asdict(result.spread(name)),
                "peak_memory": result.peak_memory[name],
            }
            for name in result.rivals
        },
    }


def scaling_rows(found: Sequence[tuple[Arguments, Result | None]]) -> list[list[str]]:
    """A header, and one row a configuration; None is one that did not fit in the memory."""
    rows = [["resolution", "batch", "accumulation", "images/s", "ms per step", "peak GB", "mfu"]]
    for args, result in found:
        opt, reached = args.optimization, ["out of memory", "", "", ""]
        if result is not None:
            reached = [
                f"{result.images_per_s.median:.2f}",
                f"{result.spread(OURS).median:.1f}",
                gigabytes(result.peak_memory[OURS]),
                f"{result.mfu:.3f}",
            ]
        sizes = (args.data.resolution, opt.train_batch_size, opt.gradient_accumulation_steps)
        rows.append([*map(str, sizes), *reached])
    return rows


def gigabytes(size: int | None) -> str:
    """Bytes as GB; a dash where they were not measured."""
    return "-" if size is None else f"{size / 1e9:.2f}"


def describe(args: Arguments) -> str:
    """The flags that speed and memory depend on, in one line."""
    opt, precision = args.optimization, args.precision
    parts = [
        f"{args.data.resolution} x {args.data.resolution}",
        f"batch {opt.train_batch_size} x {opt.gradient_accumulation_steps}",
        f"precision {precision.mixed_precision}",
        f"recompute {precision.recomputed}",
        "LPIPS" if args.losses.perceptual_scale else "no LPIPS",
        "GAN" if args.discriminator.enabled else "no GAN",
        "EMA" if opt.use_ema else "no EMA",
    ]
    parts += [name for name in ("compile", "allow_tf32", "use_8bit_adam")
              if getattr(precision, name)]  # fmt: skip
    return ", ".join(parts)


def versions() -> str:
    """Such as "Python 3.11.7, torch 2.15.0, diffusers 0.42.1"."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"Python {python}, torch {torch.__version__}, diffusers {diffusers.__version__}"
