"""Everything that can only be checked on a GPU, in one run of less than nine minutes.

    python tests/gpu_checks.py

First properties (each PASS or FAIL), then tables in Markdown for the README. Exit code 1 if any
property fails. Without a GPU it says so and exits 0; `--device cpu` runs what a CPU can, at toy
size, to see that this file works. Not collected by pytest: it needs the whole machine.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from tiny import (
    FLAGS,
    batch,
    forget_accelerator,
    gradients,
    largest_difference,
    tiny_run,
    weights,
)

from eval.benchmark import OURS, Bench, Result
from eval.benchmark_report import versions
from eval.levers import UNDO
from eval.memory_plan import plan
from eval.random_lpips import with_random_lpips
from eval.rehearsal import TRAINING, rehearse
from eval.script import Nobody, measured_arguments, training_script
from eval.textbook_step import TextbookTrainer
from modules.arguments import Arguments
from modules.build import make_discriminator
from modules.errors import RunStopped
from modules.modes import frozen
from modules.run import Run

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
parser.add_argument("--limit_s", type=float, default=500, help="begin nothing new after this")
options = parser.parse_args()
ON_GPU = options.device == "cuda"
if not ON_GPU:
    os.environ["ACCELERATE_USE_CPU"] = "true"
STARTED = time.monotonic()
SMALL = FLAGS.split()
FULL = ["--recipe", "8gb", "--gradient_accumulation_steps", "1"]
SCRIPT = training_script()
SCRIPT.after_step = lambda run, watch: True


class NeedsGPU(Exception):
    """This check means nothing on a CPU."""


def train(run: Run, batches: Sequence[dict[str, Any]]) -> Run:
    """The script's loop over `batches`, from pinned memory as the loader's."""
    pinned = [
        {k: v.pin_memory() if ON_GPU and torch.is_tensor(v) else v for k, v in b.items()}
        for b in batches
    ]
    run.loader = pinned
    SCRIPT.train(run, Nobody())
    return run


def gradients_of(flags: str, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The VAE's gradients after one micro-batch of a tiny run."""
    run = tiny_run(flags)
    run.update = lambda vae_turn, disc_turn: None
    return gradients(train(run, [given]).raw_vae.vae)


def gradients_equal_the_textbooks_in_float32() -> str:
    args = measured_arguments([*SMALL, "--lpips_backbone", "squeeze", "--perceptual_scale", "1"])
    with with_random_lpips(args) as args:
        flags = "--disc_norm_type group --lpips_backbone squeeze --perceptual_scale 1 "
        flags += f"--lpips_weights {args.losses.lpips_weights}"
        given = batch()
        ours = gradients_of(flags, given)
        trainer = TextbookTrainer(tiny_run(flags))
    trainer.backward(given)
    elements = given["images"][0].numel()
    theirs = {name: g / elements for name, g in gradients(trainer.vae).items()}
    return below(largest_difference(ours, theirs), 1e-4)


def recomputation_changes_no_gradient() -> str:
    given, plain = batch(), "--mixed_precision bf16"
    reference = gradients_of(plain, given)
    found = [
        largest_difference(gradients_of(f"{plain} --recompute {how}", given), reference)
        for how in ("norm", "full")
    ]
    return below(max(found), 1e-3)


def compiled_blocks_give_the_same_gradients() -> str:
    need_gpu()
    given = batch()
    compiled = gradients_of("--compile", given)
    return below(largest_difference(compiled, gradients_of("", given)), 1e-3)


def no_step_makes_the_host_wait() -> str:
    need_gpu()
    run = tiny_run("--use_ema --mixed_precision bf16 --gradient_accumulation_steps 2")
    train(run, [batch(seed=seed) for seed in range(4)])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(run, [batch(seed=seed) for seed in range(8)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "4 steps, 8 micro-batches"


def half_precision_trains_with_its_loss_scale() -> str:
    need_gpu()
    run = tiny_run("--mixed_precision fp16 --use_ema --disc_norm_type spectral_group")
    before = weights(run.raw_vae)
    train(run, [batch(seed=seed) for seed in range(20)])
    after = weights(run.raw_vae)
    require(all(torch.isfinite(value).all() for value in after.values()), "weights not finite")
    require(any(not torch.equal(before[n], value) for n, value in after.items()), "nothing moved")
    skipped = run.guard.check().get("skipped_steps", 0)
    require(skipped < 10, f"{skipped:.0f} of 20 steps skipped")
    return f"20 steps, {skipped:.0f} skipped, scale {run.accelerator.scaler.get_scale():.0f}"


def poisoned_batch_moves_neither_weights_nor_average() -> str:
    run = tiny_run("--use_ema --mixed_precision bf16")
    train(run, [batch(seed=0)])
    before = weights(run.raw_vae), [average.clone() for average in run.ema.averages]
    bad = batch(seed=1)
    bad["noise"][0, 0, 0, 0] = torch.nan
    train(run, [bad])
    require(run.guard.check() == {"skipped_steps": 1.0}, "the step was not skipped")
    same = all(torch.equal(before[0][n], v) for n, v in weights(run.raw_vae).items())
    require(same, "weights moved")
    same = all(torch.equal(a, b) for a, b in zip(before[1], run.ema.averages, strict=True))
    require(same, "the average moved")
    train(run, [batch(seed=2)])
    moved = any(not torch.equal(before[0][n], v) for n, v in weights(run.raw_vae).items())
    require(moved, "a good step after it did not move the weights")
    return "1 skipped, the next one taken"


def spectral_norm_is_one_under_bfloat16() -> str:
    run = tiny_run("--disc_norm_type spectral")
    network = make_discriminator(run.args, run.accelerator).to(run.accelerator.device)
    images = torch.randn(2, 3, 32, 32, device=run.accelerator.device)
    with torch.autocast(options.device, torch.bfloat16):
        for _ in range(100):
            network(images)
        state = weights(network)
        with frozen(network):
            network(images)
    require(all(torch.equal(state[n], v) for n, v in weights(network).items()), "buffers moved")
    convolutions = [layer for layer in network.model if isinstance(layer, torch.nn.Conv2d)]
    with frozen(network):
        norms = [torch.linalg.matrix_norm(c.weight.flatten(1), 2).item() for c in convolutions]
    return below(max(abs(norm - 1) for norm in norms), 0.05)


def predicted_memory_is_what_is_measured() -> str:
    need_gpu()
    text = []
    for recompute in ("none", "norm", "full"):
        args = measured_arguments([*FULL, "--recompute", recompute])
        with with_random_lpips(args) as args:
            for batch_size in (1, 4):
                sized = with_batch(args, batch_size)
                predicted, measured = plan(sized)[1].parts[TRAINING], peak_memory(sized)
                ratio = measured / predicted
                line = f"    {recompute:4s} batch {batch_size}: predicted "
                line += f"{predicted / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB"
                print(line, flush=True)
                require(0.85 < ratio < 1.10, f"{recompute}, batch {batch_size}: {ratio:.2f}")
                text.append(f"{ratio:.2f}")
    return f"measured over predicted: {', '.join(text)}"


def fits_under_a_cap_of_8_gb() -> str:
    need_gpu()
    text = []
    try:
        for resolution, size in ((256, 4), (512, 1)):
            flags = ["--recipe", "8gb", "--gradient_accumulation_steps", "2"]
            flags += ["--recompute", "norm", "--memory_limit_gb", "8"]
            flags += ["--resolution", str(resolution), "--train_batch_size", str(size)]
            with with_random_lpips(measured_arguments(flags)) as args:
                measured = peak_memory(args)
            reserved = torch.cuda.max_memory_reserved()
            text.append(f"{resolution}/{size}: {measured / 1e9:.2f} GB, reserved "
                        f"{reserved / 1e9:.2f}")  # fmt: skip
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return "; ".join(text)


def rehearsal_leaves_no_trace_and_names_what_does_not_fit() -> str:
    need_gpu()
    script = training_script()

    def loop(run: Run) -> None:
        script.train(run, Nobody())

    run = tiny_run("--mixed_precision fp16 --use_ema")
    before = weights(run.raw_vae) | weights(run.raw_discriminator)
    rehearse(run, loop, 2)
    after = weights(run.raw_vae) | weights(run.raw_discriminator)
    require(all(torch.equal(before[name], value) for name, value in after.items()), "moved")
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        rehearse(tiny_run("--resolution 1024 --train_batch_size 64"), loop, 2)
    except RunStopped as error:
        return str(error)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    raise AssertionError("64 images of 1024 x 1024 fit in a hundredth of the card")


CHECKS: tuple[Callable[[], str], ...] = (
    gradients_equal_the_textbooks_in_float32,
    recomputation_changes_no_gradient,
    compiled_blocks_give_the_same_gradients,
    no_step_makes_the_host_wait,
    half_precision_trains_with_its_loss_scale,
    poisoned_batch_moves_neither_weights_nor_average,
    spectral_norm_is_one_under_bfloat16,
    predicted_memory_is_what_is_measured,
    fits_under_a_cap_of_8_gb,
    rehearsal_leaves_no_trace_and_names_what_does_not_fit,
)


def need_gpu() -> None:
    if not ON_GPU:
        raise NeedsGPU


def require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def below(value: float, limit: float) -> str:
    require(value < limit, f"{value:.1e} is not below {limit:.0e}")
    return f"{value:.1e} (limit {limit:.0e})"


def with_batch(args: Arguments, batch_size: int) -> Arguments:
    return replace(args, optimization=replace(args.optimization, train_batch_size=batch_size))


def peak_memory(args: Arguments) -> int:
    with clean_device():
        return Bench(args, warmup=3).contestants[OURS].peak_memory


@contextmanager
def clean_device() -> Iterator[None]:
    """Nothing of earlier work is on the device, nor of this afterwards."""
    gc.collect()
    forget_accelerator()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        gc.collect()
        torch._dynamo.reset()


def run_checks() -> int:
    """Prints one line a check; the number that failed."""
    failed = 0
    for check in CHECKS:
        name, started = check.__name__.replace("_", " "), time.monotonic()
        try:
            with clean_device():
                outcome = f"PASS  {name}: {check()}"
        except NeedsGPU:
            outcome = f"----  {name}: needs a GPU"
        except Exception as error:  # a check that breaks must not hide the ones after it
            failed += 1
            traceback.print_exc()
            outcome = f"FAIL  {name}: {type(error).__name__}: {error}"
        print(f"{outcome}  [{time.monotonic() - started:.1f} s]", flush=True)
    return failed


def configurations() -> list[tuple[str, str, str | None]]:
    """(what the row is called, flags, rival) of the table, the most telling first."""
    if not ON_GPU:
        return [("toy", "", "textbook"), ("toy, bf16", "--mixed_precision bf16", None)]
    rows: list[tuple[str, str, str | None]] = [
        ("256², batch 8", "--train_batch_size 8", "textbook"),
        ("256², batch 8, compile", "--train_batch_size 8 --compile", None),
        ("256², batch 1", "--train_batch_size 1", "textbook"),
        ("256², batch 8, recompute norm", "--train_batch_size 8 --recompute norm", None),
        ("256², batch 8, recompute full", "--train_batch_size 8 --recompute full", None),
        ("256², batch 8, no TF32", "--train_batch_size 8 --no_allow_tf32", None),
        ("256², batch 32, recompute norm", "--train_batch_size 32 --recompute norm", None),
        ("512², batch 1", "--resolution 512 --train_batch_size 1", None),
        ("256², batch 1 x 8", "--gradient_accumulation_steps 8", None),
        ("256², batch 32, recompute norm, compile",
         "--train_batch_size 32 --recompute norm --compile", None),
    ]  # fmt: skip
    return rows


def measured(flags: str, rivals: list[str], steps: int, phase_steps: int) -> Result | None:
    """One benchmark; None where it does not fit in the memory."""
    args = measured_arguments([*(FULL if ON_GPU else SMALL), *flags.split()])
    try:
        with clean_device(), with_random_lpips(args) as args:
            bench = Bench(args, 5 if ON_GPU else 2, rivals)
            result = bench.measure(steps, phase_steps)
            del bench
    except torch.OutOfMemoryError:
        return None
    return result


def print_tables() -> None:
    """The table of speeds, and where the time of the first row goes."""
    print(f"\n{versions()}, {time.strftime('%Y-%m-%d')}\n")
    print("| configuration | images/s | ms per step | TFLOP/s | of bf16 matmul | peak GB | "
          "textbook ms | speed | memory |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    first = None
    for name, flags, rival in configurations():
        if time.monotonic() - STARTED > options.limit_s:
            print(f"| {name} | no time left | | | | | | | |")
            continue
        result = measured(flags, [rival] if rival else [], 20 if ON_GPU else 3, phase_steps=5)
        if result is None:
            print(f"| {name} | out of memory | | | | | | | |", flush=True)
            continue
        print(row(name, result), flush=True)
        first = first or result
    if first is not None:
        print(f"\n{first.device}; parts of a step of the first row:\n\n| part | ms |\n|---|---:|")
        for phase, times in first.phases.items():
            print(f"| {phase} | {sum(times) / len(times):.1f} |")


def print_levers() -> None:
    """How much faster the first row is than without one of the things that make it fast."""
    if time.monotonic() - STARTED > options.limit_s:
        print("\nno time left for the levers")
        return
    _, flags, _ = configurations()[0]
    result = measured(flags, list(UNDO), steps=10, phase_steps=0)
    if result is None:
        print("\nout of memory for the levers")
        return
    print("\n| in turns with the first row | it is faster by |\n|---|---:|")
    for name in UNDO:
        print(f"| {name} | {result.speedup(name).text(2)} |")


def row(name: str, result: Result) -> str:
    """One line of the Markdown table."""
    own, rival = result.contestants[OURS], result.contestants.get("textbook")
    step = sorted(own.milliseconds)[len(own.milliseconds) // 2]
    cells = [
        name,
        result.images_per_s(OURS).text(1),
        f"{step:.1f}",
        f"{result.teraflops.median:.1f}",
        f"{100 * result.mfu:.1f} %",
        f"{own.peak_memory / 1e9:.2f}",
    ]
    if rival is None:
        return f"| {' | '.join(cells)} | | | |"
    times = sorted(rival.milliseconds)
    cells += [
        f"{times[len(times) // 2]:.1f}",
        f"{result.speedup('textbook').text(2)}",
        f"{result.memory_ratio('textbook') or float('nan'):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Checks, then tables; 1 if a check failed."""
    if ON_GPU and not torch.cuda.is_available():
        print("No CUDA GPU here: nothing to check. `--device cpu` tries this file at toy size.")
        return 0
    failed = run_checks()
    print_tables()
    print_levers()
    print(f"\n{failed} of {len(CHECKS)} checks failed, {time.monotonic() - STARTED:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
