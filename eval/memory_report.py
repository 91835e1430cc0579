"""A memory plan as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.memory_plan import CONTEXT, OVERHEAD, Peaks
from eval.rehearsal import levers
from modules.arguments import Arguments


def memory_text(
    args: Arguments, states: Mapping[str, int], peaks: Sequence[Peaks], cards: Sequence[int]
) -> str:
    """The states, one line for each configuration with the cards it fits, and what was assumed."""
    width = max(map(len, states)) + 2
    lines = ["States, exact:"]
    lines += [f"  {name:{width}s}{size:15,d} bytes" for name, size in states.items()]
    lines += [f"  {'together':{width}s}{sum(states.values()):15,d} bytes", ""]
    lines += ["Peaks, predicted, in GB; allocated in each part of the run, and on the card:"]
    names = list(dict.fromkeys(name for peak in peaks for name in peak.parts))
    fits = "  ".join(f"{card:2d} GB" for card in cards)
    lines.append("resolution  batch  recompute  LPIPS slice  "
                 + "  ".join(names) + f"  on the card  {fits}")  # fmt: skip
    for peak in sorted(peaks, key=lambda p: (p.resolution, p.batch_size)):
        cells = "  ".join(f"{'fits' if peak.on_card <= 1e9 * card else '-':>5s}" for card in cards)
        sizes = "  ".join(
            f"{peak.parts[name] / 1e9:{len(name)}.2f}" if name in peak.parts else " " * len(name)
            for name in names
        )
        lines.append(
            f"{peak.resolution:10d}  {peak.batch_size:5d}  {peak.recompute:>9s}  "
            f"{peak.lpips_slice or 'all':>11}  {sizes}  {peak.on_card / 1e9:11.2f}  {cells}"
        )
    precision, largest = args.precision.mixed_precision, max(peaks, key=lambda p: p.allocated)
    lines += [
        "",
        f"What needs most is {largest.largest}; flags that lower it, in the order to try them: "
        f"{', '.join(levers(args, largest.largest))}.",
        "",
        f"Precision {precision}, one GPU, every loss at work, "
        f"{'with' if args.optimization.gradient_accumulation_steps > 1 else 'without'} "
        "accumulation. GB are 10^9 bytes.",
        "allocated: all tensors at their worst moment, in the allocator's blocks; what",
        "torch.cuda.max_memory_allocated() would say, without the convolutions' workspaces.",
        f"on the card: {100 * OVERHEAD:.0f} % more for those workspaces and for fragmentation, and "
        f"{CONTEXT / 1e9:.1f} GB for CUDA's",
        "context and libraries: assumptions. A desktop on the same card takes 0.3 to 1 GB more.",
        "Not in it: torch.compile, which fuses and keeps less; several GPUs, which add DDP's",
        "buckets, as large as the gradients.",
    ]
    return "\n".join(lines)
