"""From flags to a run: everything that trains, prepared by accelerate, on the device."""

from __future__ import annotations

from modules.builders.accelerator import make_accelerator
from modules.builders.networks import make_discriminator, make_perceptual
from modules.builders.optimizers import (
    make_gan_schedule,
    make_optimizers,
    make_schedulers,
    training_length,
)
from modules.config.arguments import Arguments
from modules.distributed.device import convolution_layout
from modules.models.autoencoder import TrainableVAE
from modules.models.compilation import compile_networks, require_compiler
from modules.models.norm_silu import can_fuse, fuse_norms
from modules.training.adversary import Adversary
from modules.training.ema import ExponentialMovingAverage
from modules.training.guard import FiniteGuard
from modules.training.meter import Meter
from modules.training.run import Run
from modules.training.schedule import BEGINNING, Reached


def make_run(
    args: Arguments, vae: TrainableVAE, num_train_images: int | None, reached: Reached = BEGINNING
) -> Run:
    """Builds what trains and lets accelerate prepare it, all of it with weights on the device."""
    accelerator = make_accelerator(args)
    perceptual = make_perceptual(args)
    discriminator = make_discriminator(args, accelerator, vae.vae.config.in_channels, perceptual)
    compiled = args.precision.compile  # which joins norms by itself
    fused = not compiled and can_fuse(accelerator.device) and fuse_norms(vae.vae)
    width = vae.vae.config.block_out_channels[0]
    layout = convolution_layout(accelerator.device, width, fused)
    for network in (vae, discriminator):
        network.to(memory_format=layout)
    steps = training_length(args, num_train_images, accelerator.num_processes, reached)
    schedule = make_gan_schedule(args, steps, reached)
    optimizers = make_optimizers(args, vae, discriminator, accelerator.num_processes)
    schedulers = make_schedulers(args, *optimizers, schedule, steps, reached)
    if compiled:
        require_compiler(accelerator.device)
        several = args.data.several_shapes or args.losses.eq_prob > 0
        compile_networks(vae.vae, discriminator, perceptual, any_shape=several)
    prepared = accelerator.prepare(vae, discriminator, *optimizers, *schedulers)
    for optimizer in prepared[2:4]:
        optimizer.scaler = None  # float16's loss scale is handled in `Run.update`, for both at once
    ema, opt = None, args.optimization
    if opt.use_ema:
        ema = ExponentialMovingAverage(vae.vae, opt.ema_half_life, opt.ema_decay)
    return Run(
        args,
        accelerator,
        *prepared,
        perceptual=perceptual.to(accelerator.device) if perceptual else None,
        ema=ema,
        schedule=schedule,
        max_train_steps=steps,
        layout=layout,
        meter=Meter(accelerator),
        guard=FiniteGuard(accelerator, opt.max_skipped_steps),
        adversary=Adversary(args.discriminator.gan_guard, accelerator.device),
    )
