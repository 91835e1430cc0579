"""Everything that a run will ask of the device's memory, tried before its first step.

What comes late (the discriminator, a validation) needs more than the first step does, and a run
that ends there after a night has lost it. Each part runs once, at its largest, beside stand-ins for
the optimizers' moments; nothing is updated, and the run is afterwards what it was, to the bit.
`python -m eval memory` runs the same parts over tensors without data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eval.metrics.columns import keys_of
from eval.metrics.fid import extract_features
from eval.metrics.networks import Networks
from eval.metrics.precise import full_precision
from eval.protocol.codecs import VAECodec
from eval.protocol.protocol import Protocol
from eval.protocol.tally import measure_batch
from eval.validation import Validation, measured
from modules.builders.state_sizes import moment_bytes
from modules.config.answers import is_about_memory
from modules.config.arguments import Arguments
from modules.errors import RunStopped
from modules.image_modes import rgb_views
from modules.models.autoencoder import latent_shape
from modules.training.adversary import Adversary
from modules.training.guard import FiniteGuard
from modules.training.meter import Meter
from modules.training.run import Run

TRAINING, BEFORE_GAN = "training", "before the GAN"
VALIDATION, LATENTS = "validation", "measuring latents"
WITHOUT_LIMIT = ("cpu",)  # devices on which a rehearsal would tell nothing


def rehearse(run: Run, train: Callable[[Run], object], watched: Validation | None) -> None:
    """Tries what is still to come of `run`, on a GPU. Collective.

    train: the script's loop. watched: the validation that is to come, if any. Raises RunStopped
    where the memory does not suffice, naming what was tried and the flags that lower it.
    """
    if run.accelerator.device.type in WITHOUT_LIMIT:
        return
    with moments(run):
        if run.step < run.max_train_steps:
            with explained(run.args, TRAINING):
                # The last two: everything that ever works is at work, and it is everyone's turn.
                rehearse_training(run, train, run.max_train_steps - 2, run.max_train_steps - 1)
        if watched is not None:
            with explained(run.args, VALIDATION):
                batch_size = min(len(watched), run.args.validation_batch_size)
                rehearse_validation(run, watched.judges, batch_size)
        elif not run.args.model.decoder_only:  # a validation has done it already
            with explained(run.args, LATENTS):
                rehearse_latents(run, run.args.validation_batch_size)


def parts(
    run: Run, train: Callable[[Run], object], judges: Networks
) -> dict[str, Callable[[], None]]:
    """Every part of a run by name, at full GAN and at its largest, each to be tried by a call."""
    size = run.args.validation_batch_size
    found = {TRAINING: partial(rehearse_training, run, train, run.step)}
    if run.schedule.adversarial_share(0) < run.schedule.adversarial_share(run.step):
        found[BEFORE_GAN] = partial(rehearse_training, run, train, 0)
    found[VALIDATION] = partial(rehearse_validation, run, judges, size)
    if not run.args.model.decoder_only:
        found[LATENTS] = partial(rehearse_latents, run, size)
    return found


def rehearse_training(run: Run, train: Callable[[Run], object], *steps: int) -> None:
    """Forward and backward of micro-batches of the largest shape, as at each of `steps`."""
    opt, accelerator = run.args.optimization, run.accelerator
    networks = run.raw_vae, run.raw_discriminator
    buffers = [(buffer, buffer.clone()) for network in networks for buffer in network.buffers()]
    # Where gradients stay, from the micro-batch before or as zeros, a second one meets them.
    kept = opt.gradient_accumulation_steps > 1 or not run.args.precision.set_grads_to_none
    batches = [largest_batch(run)] * (2 if kept else 1)
    # Latents that --eq_prob changes are smaller.
    args = replace(run.args, losses=replace(run.args.losses, eq_prob=0.0))
    with unfinished(accelerator, len(batches)):
        for step in steps:
            accelerator.step = 0
            train(replace(run, args=args, step=step, loader=batches, rejected=[],
                          meter=Meter(accelerator), guard=FiniteGuard(accelerator, 1),
                          adversary=Adversary(False, accelerator.device)))  # fmt: skip
            for network in networks:
                network.zero_grad(set_to_none=True)
    for buffer, before in buffers:  # spectral norm's, which every forward moves
        buffer.copy_(before)


@contextmanager
def unfinished(accelerator: Any, count: int) -> Iterator[None]:
    """Within, `count` micro-batches complete no optimizer step; DDP does not even see them."""
    before = accelerator.gradient_accumulation_steps, accelerator.step, accelerator.sync_gradients
    accelerator.gradient_accumulation_steps = count + 1
    try:
        yield
    finally:
        accelerator.gradient_accumulation_steps, accelerator.step, accelerator.sync_gradients = (
            before
        )


@torch.no_grad()
def rehearse_validation(run: Run, judges: Networks, batch_size: int) -> None:
    """One batch, reconstructed and measured as in a validation."""
    images, codec = _black(run, batch_size), VAECodec(run.raw_vae.vae)
    protocol = Protocol.of(run.raw_vae.vae, run.args.data.resolution)
    with full_precision(), codec.prepared(images.device):
        output = codec.reconstruct(images, range(batch_size), protocol)
        measure_batch(keys_of(measured(run.args)), images, output, judges.lpips)
        if judges.inception is not None:
            extract_features(judges.inception, rgb_views(output.images)[0])


@torch.no_grad()
def rehearse_latents(run: Run, batch_size: int) -> None:
    """One batch, encoded as for the export's statistics."""
    images, codec = _black(run, batch_size), VAECodec(run.raw_vae.vae)
    with full_precision(), codec.prepared(images.device):
        codec.encode(images)


def _black(run: Run, batch_size: int) -> Tensor:
    channels, side = run.raw_vae.vae.config.in_channels, run.args.data.resolution
    size = (batch_size, channels, side, side)
    return torch.zeros(size, dtype=torch.uint8, device=run.accelerator.device)


def largest_batch(run: Run) -> dict[str, Any]:
    """A micro-batch of the largest shape: in an area of aspect-ratio buckets, the square."""
    args = run.args
    return random_batch(
        run, args.optimization.train_batch_size, max(args.data.training_resolutions)
    )


def random_batch(run: Run, batch_size: int, resolution: int) -> dict[str, Any]:
    """What the loader yields, but noise: `batch_size` images of `resolution` x `resolution`."""
    generator = torch.Generator().manual_seed(0)
    vae = run.raw_vae.vae
    size = (batch_size, vae.config.in_channels, resolution, resolution)
    return {
        "images": torch.randint(256, size, dtype=torch.uint8, generator=generator),
        "noise": torch.randn(batch_size, *latent_shape(vae, resolution), generator=generator),
        "upscaled": torch.tensor(0),
        "rejected": [],
    }


@contextmanager
def moments(run: Run) -> Iterator[None]:
    """Holds the memory that the optimizers take at their first step, where they have not yet."""
    networks = [(run.raw_vae, run.optimizer_vae)]
    if run.args.discriminator.enabled:
        networks.append((run.raw_discriminator, run.optimizer_disc))
    held = [
        torch.empty(moment_bytes(p, run.args), dtype=torch.uint8, device=p.device)
        for network, optimizer in networks
        for p in network.parameters()
        if p.requires_grad and not optimizer.state
    ]
    yield
    del held


def levers(args: Arguments, part: str) -> list[str]:
    """The flags that lower what `part` needs and are not in use, in the order to try them."""
    opt, precision, batch = args.optimization, args.precision, args.optimization.train_batch_size
    fewest = 2 if args.discriminator.disc_norm_type == "batch" else 1
    parts = [n for n in range(fewest, batch) if batch % n == 0]
    looked_at = precision.perceptual_slice_size or batch
    training = [
        (precision.recomputed == "none", "--recompute norm"),
        (precision.recomputed == "norm", "--recompute full"),
        (parts, f"--train_batch_size {parts[-1]} --gradient_accumulation_steps "
                f"{opt.gradient_accumulation_steps * batch // parts[-1]}" if parts else ""),
        (args.losses.perceptual_scale and looked_at > 1, "--perceptual_slice_size 1"),
        (not precision.use_8bit_adam, "--use_8bit_adam"),
    ]  # fmt: skip
    validation = [(args.validation_batch_size > 1, "--validation_batch_size 1")]
    offered = [] if part in (VALIDATION, LATENTS) else training
    offered += [] if part in (BEFORE_GAN, TRAINING) else validation
    return [flags for useful, flags in offered if useful] + ["a smaller --resolution"]


@contextmanager
def explained(args: Arguments, part: str = "this run") -> Iterator[None]:
    """Within, a want of memory becomes RunStopped, one line that says which flags help.

    So does a block that --compile cannot hold in a fixed number of graphs.
    """
    try:
        yield
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        raise RunStopped(
            "--compile: a block meets ever new shapes, and PyTorch would run it uncompiled from "
            "now on; drop --compile, or train on fewer shapes"
        ) from error
    except RuntimeError as error:
        if isinstance(error, RunStopped) or not is_about_memory(error):
            raise
        reason = str(error).strip().splitlines()[0].split(" Of the allocated memory")[0]
        raise RunStopped(
            f"the device's memory does not suffice for {part}; flags that lower the need, in the "
            f"order to try them: {', '.join(levers(args, part))}. `python -m eval memory` with the "
            f"run's flags predicts the need of each of its parts ({reason})"
        ) from error
