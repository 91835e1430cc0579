"""What a benchmark found, as text for a terminal and as data for JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import diffusers
import torch

from eval.speed.benchmark import OURS, Result
from eval.speed.spread import Spread
from eval.speed.textbook_step import DTYPES
from modules.config.arguments import Arguments


def benchmark_text(args: Arguments, result: Result) -> str:
    """Speed, memory, use of the device, time of each part, ratios."""
    own = result.contestants[OURS]
    dtype = str(DTYPES[args.precision.mixed_precision]).removeprefix("torch.")
    lines = [
        f"{result.device}, {versions()}",
        describe(args),
        "median (10th to 90th percentile):",
        f"  images/s      {result.images_per_s(OURS).text(2)}",
        f"  ms per step   {Spread.of(own.milliseconds).text(1)}, {len(own.milliseconds)} steps",
        f"  TFLOP/s       {result.teraflops.text(2)}, {result.flops / 1e12:.2f} TFLOP a step",
        f"  of matmul     {100 * result.mfu:.1f} % of {result.peak_flops_per_s / 1e12:.2f} "
        f"TFLOP/s, measured in {dtype}",
        f"  peak memory   {own.peak_memory / 1e9:.2f} GB",
    ]
    total = sum(Spread.of(times).median for times in result.phases.values() if times)
    for phase, times in result.phases.items():
        if times and total:
            spread = Spread.of(times)
            share = 100 * spread.median / total
            lines.append(f"    {phase:30s} {spread.text(1):>32s} ms  {share:5.1f} %")
    for name, contestant in result.contestants.items():
        if name == OURS:
            continue
        lines.append(f"{name}: {Spread.of(contestant.milliseconds).text(1)} ms per step")
        lines.append(f"  ours is {result.speedup(name).text(2)} times as fast")
        memory = result.memory_ratio(name)
        if memory is not None:
            lines.append(
                f"  and needs {memory:.2f} times the memory ({own.peak_memory / 1e9:.2f} GB of "
                f"{contestant.peak_memory / 1e9:.2f} GB)"
            )
    return "\n".join(lines)


def benchmark_data(args: Arguments, result: Result) -> dict[str, Any]:
    """Everything measured; `ratio` has one entry for each rival."""
    own = result.contestants[OURS]
    rivals = {name: c for name, c in result.contestants.items() if name != OURS}
    data: dict[str, Any] = {
        "device": result.device,
        "versions": versions(),
        "configuration": describe(args),
        "images_per_s": result.images_per_s(OURS).to_dict(),
        "ms": {
            "step": Spread.of(own.milliseconds).to_dict(),
            **{name: Spread.of(times).to_dict() for name, times in result.phases.items() if times},
        },
        "tflops_per_s": result.teraflops.to_dict(),
        "matmul_tflops_per_s": result.peak_flops_per_s / 1e12,
        "mfu": result.mfu,
        "peak_memory_gb": own.peak_memory / 1e9,
        "ratio": {},
    }
    for name, rival in rivals.items():
        data["ratio"][name] = {
            "speed": result.speedup(name).to_dict(),
            "memory": result.memory_ratio(name),
            "ms": Spread.of(rival.milliseconds).to_dict(),
            "peak_memory_gb": rival.peak_memory / 1e9,
        }
    return data


def scaling_table(rows: Sequence[dict[str, Any]]) -> str:
    """Aligned columns, one row a configuration."""
    lines = ["resolution  batch  accumulation    images/s  ms per step  peak GB    mfu"]
    for row in rows:
        head = f"{row['resolution']:10d}  {row['batch']:5d}  {row['accumulation']:12d}"
        if row["images_per_s"] is None:
            lines.append(f"{head}    out of memory")
            continue
        lines.append(
            f"{head}  {row['images_per_s']['median']:10.2f}  {row['ms']['median']:11.1f}"
            f"  {row['peak_memory_gb']:7.2f}  {row['mfu']:5.3f}"
        )
    return "\n".join(lines)


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
