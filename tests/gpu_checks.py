"""Everything that can only be checked on a GPU, in one run of less than eight minutes.

    python tests/gpu_checks.py

First properties (each PASS or FAIL), then tables in Markdown for the README. Exit code 1 if any
property fails. Without a GPU it says so and exits 0; `--device cpu` runs what a CPU can, at toy
size, to see that this file works. Not collected by pytest: it needs the whole machine.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "support"))
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
from tiny import (
    FLAGS,
    batch,
    forget_accelerator,
    gradients,
    largest_difference,
    tiny_run,
    weights,
)
from tiny import train as train_unpinned
from torch._dynamo.utils import counters

import train_vae
from eval import rehearsal
from eval.commands.checks import measured_arguments
from eval.memory.random_lpips import random_lpips
from eval.rehearsal import TRAINING, moments, parts, rehearse
from eval.speed.benchmark import OURS, Bench, Result, ours
from eval.speed.benchmark_report import gigabytes, versions
from eval.speed.levers import UNDO
from eval.speed.predicted import plan
from eval.speed.textbook_step import TextbookTrainer
from eval.validation import make_validation, open_judges
from modules.builders.networks import make_discriminator
from modules.data.images.synthetic import SyntheticImages
from modules.errors import RunStopped
from modules.models.modes import frozen
from modules.models.norm_silu import GroupNormSiLU
from modules.training.run import Run

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
parser.add_argument("--limit_s", type=float, default=380, help="begin nothing new after this")
options = parser.parse_args()
ON_GPU = options.device == "cuda"
if not ON_GPU:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    rehearsal.WITHOUT_LIMIT = ()  # a rehearsal tells nothing on a CPU, but must work
STARTED = time.monotonic()
QUALITY_S = 90  # seconds after the limit that two arms may take
FULL = ["--recipe", "8gb", "--gradient_accumulation_steps", "1", "--recompute", "norm"]
TOY = [*FLAGS.split(), "--disc_start", "10"]
CONFIGURATION = FULL if ON_GPU else TOY
RECOMPUTED = ("none", "norm", "full")
CHECKS: list[Callable[[], str]] = []


def rehearsed(run: Run) -> None:
    """Tries every part of a run that validates on 2 images."""
    watched = make_validation(run, SyntheticImages(2, run.args.data.resolution, 0))
    rehearse(run, partial(train_vae.train, watch=None), watched)


def train(run: Run, batches: Sequence[dict[str, Any]]) -> Run:
    """The script's loop over `batches`, from pinned memory as the loader's."""
    return train_unpinned(run, [
        {k: v.pin_memory() if ON_GPU and torch.is_tensor(v) else v for k, v in b.items()}
        for b in batches
    ])  # fmt: skip


def gradients_of(flags: str, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The VAE's gradients after one micro-batch of a tiny run."""
    run = tiny_run(flags)
    torch.backends.cudnn.benchmark = False  # to try kernels takes longer than to train this
    run.update = lambda vae_turn, disc_turn: None
    return gradients(train(run, [given]).raw_vae.vae)


def check(function: Callable[[], str]) -> Callable[[], str]:
    """One of CHECKS, which run in the order of this file: the quick ones first."""
    CHECKS.append(function)
    return function


def gpu_check(function: Callable[[], str]) -> Callable[[], str]:
    """One that means nothing on a CPU."""
    return check(function) if ON_GPU else function


def require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def below(value: float, limit: float) -> str:
    require(value < limit, f"{value:.1e} is not below {limit:.0e}")
    return f"{value:.1e} (limit {limit:.0e})"


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


@cache
def memory_of(recompute: str) -> tuple[dict[str, int], dict[str, int], int]:
    """Bytes of each part of a run as predicted, the same as measured, and those of its steps.

    All of one batch size, whose kernels cuDNN tries once.
    """
    args = measured_arguments([*CONFIGURATION, "--recompute", recompute, "--train_batch_size", "2"])
    predicted = plan(args)[1].parts
    with clean_device(), random_lpips():
        run, step = ours(args)
        with moments(run):
            judges = open_judges(args, run.perceptual, run.accelerator.device)
            to_try = parts(run, partial(train_vae.train, watch=None), judges)
            to_try[TRAINING]()  # cuDNN tries its kernels, some of which want much
            measured = {name: peak_memory(part) for name, part in to_try.items()}
        step()  # makes the optimizers' moments
        return predicted, measured, peak_memory(step)


def peak_memory(act: Callable[[], object]) -> int:
    """Bytes allocated at the worst moment of `act`; 0 on a CPU."""
    gc.collect()
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    act()
    return torch.cuda.max_memory_allocated()


@check
def gradients_equal_the_textbooks_in_float32() -> str:
    flags = "--disc_norm_type group --lpips_backbone squeeze --perceptual_scale 1"
    given = batch()
    with random_lpips():
        ours = gradients_of(flags, given)
        trainer = TextbookTrainer(tiny_run(flags))
    trainer.backward(given)
    elements = given["images"][0].numel()
    theirs = {name: g / elements for name, g in gradients(trainer.vae).items()}
    return below(largest_difference(ours, theirs), 1e-4)


@gpu_check
def norm_and_silu_in_one_are_the_two_at_full_size() -> str:
    both = GroupNormSiLU(32, 128, eps=1e-6, device="cuda")
    torch.nn.init.normal_(both.weight)
    inputs, upstream = torch.randn(2, 4, 128, 256, 256, device="cuda", dtype=torch.bfloat16)
    inputs = inputs.contiguous(memory_format=torch.channels_last).requires_grad_()
    apart = F.silu(F.group_norm(inputs.float(), 32, both.weight, both.bias, 1e-6))
    wanted, found = (inputs, both.weight, both.bias), []
    for output in (both(inputs), apart):
        backward = torch.autograd.grad(output, wanted, upstream.to(output.dtype))
        found.append([tensor.double() for tensor in (output, *backward)])
    pairs = zip(*found, strict=True)
    return below(max(((ours - exact).norm() / exact.norm()).item() for ours, exact in pairs), 4e-3)


@check
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


@check
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


@check
def rehearsal_leaves_no_trace() -> str:
    run = tiny_run(f"--use_ema --mixed_precision {'fp16' if ON_GPU else 'bf16'}")
    before = weights(run.raw_vae) | weights(run.raw_discriminator)
    rehearsed(run)
    after = weights(run.raw_vae) | weights(run.raw_discriminator)
    require(all(torch.equal(before[name], value) for name, value in after.items()), "moved")
    return f"{len(after)} tensors"


@gpu_check
def rehearsal_names_what_does_not_fit() -> str:
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        rehearsed(tiny_run("--resolution 1024 --train_batch_size 64"))
    except RunStopped as error:
        return str(error)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    raise AssertionError("64 images of 1024 x 1024 fit in a hundredth of the card")


@gpu_check
def no_step_makes_the_host_wait() -> str:
    run = tiny_run("--use_ema --mixed_precision bf16 --gradient_accumulation_steps 2")
    train(run, [batch(seed=seed) for seed in range(4)])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(run, [batch(seed=seed) for seed in range(8)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "4 steps, 8 micro-batches"


@gpu_check
def half_precision_trains_with_its_loss_scale() -> str:
    run = tiny_run("--mixed_precision fp16 --use_ema --disc_norm_type spectral_group")
    before = weights(run.raw_vae)
    train(run, [batch(seed=seed) for seed in range(20)])
    after = weights(run.raw_vae)
    require(all(torch.isfinite(value).all() for value in after.values()), "weights not finite")
    require(any(not torch.equal(before[n], value) for n, value in after.items()), "nothing moved")
    skipped = run.guard.check().get("skipped_steps", 0)
    require(skipped < 10, f"{skipped:.0f} of 20 steps skipped")
    return f"20 steps, {skipped:.0f} skipped, scale {run.accelerator.scaler.get_scale():.0f}"


@check
def recomputation_changes_no_gradient() -> str:
    given = batch()
    none, norm, full = (
        gradients_of(f"--mixed_precision bf16 --recompute {how}", given) for how in RECOMPUTED
    )
    return below(max(largest_difference(norm, none), largest_difference(full, none)), 1e-3)


@check
def largest_part_needs_the_memory_that_is_predicted() -> str:
    """What a user needs is the peak of the run: that of its largest part, which is training.

    A validation takes more than is predicted of it, for cuDNN's workspaces in the float32
    convolutions of the judges (2.80 GB for 2.24 on an H100, batch 4 at 256²). It need only stay
    below the peak.
    """
    largest, any_part = [], []
    for recompute in RECOMPUTED:
        predicted, measured, _ = memory_of(recompute)
        require(measured.keys() == predicted.keys(), "not the same parts")
        for name, size in predicted.items():
            print(f"    {recompute}, {name}: predicted {size / 1e9:.3f} GB, measured "
                  f"{measured[name] / 1e9:.3f} GB", flush=True)  # fmt: skip
        peak = max(predicted, key=predicted.get)
        largest.append(measured[peak] / predicted[peak])
        any_part.append(max(measured.values()) / predicted[peak])
    if not ON_GPU:
        return "every part is there; a CPU counts no memory"
    found = f"measured over predicted: {min(largest):.2f} to {max(any_part):.2f}"
    require(min(largest) > 0.90 and max(any_part) < 1.08, found)
    return found


@gpu_check
def a_step_needs_what_its_rehearsal_does() -> str:
    found = [(stepped, tried[TRAINING]) for _, tried, stepped in map(memory_of, RECOMPUTED)]
    text = ", ".join(f"{stepped / tried:.3f}" for stepped, tried in found)
    require(all(0.95 < stepped / tried < 1.05 for stepped, tried in found), text)
    return f"{text} of the rehearsal's"


@gpu_check
def fits_under_a_cap_of_8_gb() -> str:
    text = []
    try:
        for resolution, size in ((256, 6), (512, 1)):
            flags = ["--gradient_accumulation_steps", "2", "--memory_limit_gb", "7.4",
                     "--resolution", str(resolution), "--train_batch_size", str(size)]  # fmt: skip
            with clean_device(), random_lpips():
                Bench(measured_arguments([*FULL, *flags]), warmup=2)
                reserved = torch.cuda.max_memory_reserved()
            text.append(f"{resolution}², batch {size}: reserved {reserved / 1e9:.2f} GB")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return "; ".join(text)


@gpu_check
def compiled_blocks_give_the_same_gradients_with_the_graphs_of_the_rehearsal() -> str:
    """Of three levels, which are compiled sooner than four."""
    counters.clear()
    flags, given = "--downsample_factor 4 --block_out_channels 8 16 16", batch(shape=(4, 8, 8))
    run = tiny_run(f"{flags} --compile")
    rehearsed(run)
    graphs = counters["stats"]["unique_graphs"]
    require(graphs > 0, "nothing was compiled")
    run.update = lambda vae_turn, disc_turn: None
    compiled = gradients(train(run, [given]).raw_vae.vae)
    later = counters["stats"]["unique_graphs"]
    require(later == graphs, f"{later - graphs} graphs more in the first step")
    difference = below(largest_difference(compiled, gradients_of(flags, given)), 1e-3)
    return f"{difference}, {graphs} graphs"


def run_checks() -> int:
    """Prints one line a check; the number that failed."""
    failed = 0
    for act in CHECKS:
        name, started = act.__name__.replace("_", " "), time.monotonic()
        try:
            with clean_device():
                outcome = f"PASS  {name}: {act()}"
        except Exception as error:  # a check that breaks must not hide the ones after it
            failed += 1
            traceback.print_exc()
            outcome = f"FAIL  {name}: {type(error).__name__}: {error}"
        print(f"{outcome}  [{time.monotonic() - started:.1f} s]", flush=True)
    return failed


def configurations() -> list[tuple[str, ...]]:
    """(what the row is called, flags, and perhaps a rival) of the table, the most telling first."""
    if not ON_GPU:
        return [("toy", "", "textbook"), ("toy, bf16", "--mixed_precision bf16")]
    return [
        ("256², batch 8", "--train_batch_size 8 --recompute none", "textbook"),
        ("256², batch 8, recompute norm", "--train_batch_size 8"),
        ("256², batch 1, recompute norm", "", "textbook"),
        ("256², batch 8, compile", "--train_batch_size 8 --recompute none --compile"),
        ("512², batch 1, recompute norm", "--resolution 512"),
        ("256², batch 8, recompute full", "--train_batch_size 8 --recompute full"),
        ("256², batch 8, no TF32", "--train_batch_size 8 --recompute none --no_allow_tf32"),
        ("256², batch 1 x 8, recompute norm", "--gradient_accumulation_steps 8"),
        ("256², batch 32, recompute norm", "--train_batch_size 32"),
        ("256², batch 32, recompute norm, compile", "--train_batch_size 32 --compile"),
    ]


def measured(flags: str, rivals: list[str], steps: int, phase_steps: int) -> Result | None:
    """One benchmark; None where it does not fit in the memory."""
    args = measured_arguments([*CONFIGURATION, *flags.split()])
    try:
        with clean_device(), random_lpips():
            return Bench(args, 5 if ON_GPU else 2, rivals).measure(steps, phase_steps)
    except torch.OutOfMemoryError:
        return None


def time_is_up() -> bool:
    """Whether nothing new is to begin."""
    return time.monotonic() - STARTED > options.limit_s


def print_tables() -> None:
    """The table of speeds, and where the time of the first row goes."""
    print(f"\n{versions()}, {time.strftime('%Y-%m-%d')}\n")
    print("| configuration | images/s | ms per step | TFLOP/s | of bf16 matmul | peak GB | "
          "textbook ms | faster by | its peak GB |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    first = None
    for name, flags, *rivals in configurations():
        if time_is_up():
            print(f"| {name} | no time left |")
        elif (result := measured(flags, rivals, 20 if ON_GPU else 3, phase_steps=5)) is None:
            print(f"| {name} | out of memory |", flush=True)
        else:
            print(row(name, result), flush=True)
            first = first or result
    if first is not None:
        print(f"\n{first.device}; parts of a step of the first row:\n\n| part | ms |\n|---|---:|")
        for phase, times in first.phases.items():
            print(f"| {phase} | {sum(times) / len(times):.1f} |")


def print_levers() -> None:
    """How much faster the first row is than without one of the things that make it fast."""
    _, flags, *_ = configurations()[0]
    result = None if time_is_up() else measured(flags, list(UNDO), steps=10, phase_steps=0)
    if result is None:
        print("\nneither time nor memory for the levers")
        return
    print("\n| in turns with the first row | it is faster by |\n|---|---:|")
    for name in UNDO:
        print(f"| {name} | {result.speedup(name).text(2)} |")


def print_quality() -> None:
    """What the start is worth here: two arms of the comparison, as short as the time left."""
    left = options.limit_s + QUALITY_S - (time.monotonic() - STARTED)
    if left < QUALITY_S:
        print("\nno time left for the arms")
        return
    steps = max(2, int(left / QUALITY_S * (100 if ON_GPU else 4)))
    toy = "" if ON_GPU else (
        "--resolution 32 --block_out_channels 8 8 16 16 --train_batch_size 2 --validation_steps 2 "
        "--num_latent_images 4 --disc_hidden_channels 8 --disc_num_groups 4"
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        source, unseen = SyntheticImages(16, 256, seed=2**31), Path(folder, "unseen")
        unseen.mkdir()
        for index in range(16):
            source.open(index).save(unseen / f"{index}.png")
        command = [
            sys.executable, "-m", "eval", "quality", "--preset", "gpu" if ON_GPU else "cpu",
            "--arm", "random: --vae_init random", "--arm", "resampler: --vae_init resampler",
            "--seeds", "0", "--dataset_name", "synthetic", "--validation_data_dir", str(unseen),
            "--max_train_steps", str(steps), "--output_dir", folder, *toy.split(),
        ]  # fmt: skip
        print(f"\nArms of {steps} steps:\n", flush=True)
        subprocess.run(command, cwd=Path(__file__).parent.parent, check=False)


def row(name: str, result: Result) -> str:
    """One line of the Markdown table."""
    cells = [
        name,
        result.images_per_s.text(1),
        f"{result.spread(OURS).median:.1f}",
        f"{result.teraflops.median:.1f}",
        f"{100 * result.mfu:.1f} %",
        gigabytes(result.peak_memory[OURS]),
    ]
    if "textbook" in result.rivals:
        cells += [
            f"{result.spread('textbook').median:.1f}",
            result.speedup("textbook").text(2),
            gigabytes(result.peak_memory["textbook"]),
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
    print_quality()
    print(f"\n{failed} of {len(CHECKS)} checks failed, {time.monotonic() - STARTED:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
