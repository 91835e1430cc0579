"""How long a run is, and from flags to optimizers and schedules: who moves when, and how far."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial

from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from modules.config.arguments import Arguments
from modules.config.limits import in_steps
from modules.errors import ArgumentError
from modules.training.schedule import GanSchedule, Reached

logger = logging.getLogger(__name__)


def training_length(
    args: Arguments, num_train_images: int | None, num_processes: int, reached: Reached
) -> int:
    """Optimizer steps of the run. An epoch's last step is filled from the next epoch."""
    opt = args.optimization
    if opt.max_train_steps is not None:
        return opt.max_train_steps
    left = opt.num_train_epochs * num_train_images - reached.samples
    return reached.step + max(0, math.ceil(left / opt.images_per_step(num_processes)))


def make_gan_schedule(args: Arguments, max_train_steps: int, reached: Reached) -> GanSchedule:
    """When the discriminator trains and when the VAE feels it; says where that is not as asked.

    A share of a run that has become longer or shorter since the GAN began stays what it was.
    """
    disc = args.discriminator
    start, warmup, ramp = (disc.lengths(max_train_steps) | reached.lengths).values()
    asked = GanSchedule(
        enabled=disc.enabled,
        start=start,
        warmup_steps=warmup,
        ramp_steps=ramp,
        in_turns=args.optimization.alternation == "every_other_step",
    )
    schedule = asked.continued(reached)
    if schedule != asked:
        logger.warning(
            "--disc_start=%d is past, and the discriminator has not trained since then: as if it "
            "were %d, so that it has its head start of --disc_warmup_steps", asked.start,
            schedule.start,
        )  # fmt: skip
    return schedule


def make_optimizers(
    args: Arguments, vae: nn.Module, discriminator: nn.Module, num_processes: int
) -> tuple[Optimizer, Optimizer]:
    """AdamW for each network, over the parameters that train."""
    opt, (rate, disc_rate) = args.optimization, args.peak_rates
    scale = opt.images_per_step(num_processes) if opt.scale_lr else 1
    betas = (opt.adam_beta1, opt.adam_beta2)
    own = (opt.disc_adam_beta1, opt.disc_adam_beta2)
    disc_betas = tuple(b if o is None else o for b, o in zip(betas, own, strict=True))
    adamw = _adamw_8bit() if args.precision.use_8bit_adam else partial(AdamW, fused=True)

    def optimizer(network: nn.Module, rate: float, betas: tuple[float, float]) -> Optimizer:
        parameters = [p for p in network.parameters() if p.requires_grad]
        return adamw(parameters, lr=rate * scale, betas=betas, eps=opt.adam_epsilon,
                     weight_decay=opt.adam_weight_decay)  # fmt: skip

    return optimizer(vae, rate, betas), optimizer(discriminator, disc_rate, disc_betas)


def _adamw_8bit() -> type[Optimizer]:
    try:
        import bitsandbytes
    except ImportError:
        raise ArgumentError(
            "--use_8bit_adam needs bitsandbytes: `pip install bitsandbytes`, or drop the flag"
        ) from None
    return bitsandbytes.optim.AdamW8bit


def make_schedulers(
    args: Arguments,
    optimizer_vae: Optimizer,
    optimizer_disc: Optimizer,
    schedule: GanSchedule,
    max_train_steps: int,
    reached: Reached,
) -> tuple[LRScheduler, LRScheduler]:
    """Learning-rate schedules, each as long as the updates that its network has had and will get.

    They begin at 0: a checkpoint puts them where it was.
    """
    opt = args.optimization

    def scheduler(name: str, optimizer: Optimizer, updates: int) -> LRScheduler:
        warmup = in_steps(opt.lr_warmup_steps, updates)
        cycles, power = opt.lr_num_cycles, opt.lr_power
        return get_scheduler(name, optimizer, None, warmup, updates, cycles, power)

    def length(updates: Callable[[int], int], had: int | None) -> int:
        scheduled = updates(reached.step)
        return (scheduled if had is None else had) + updates(max_train_steps) - scheduled

    vae_updates = length(schedule.vae_updates, reached.vae_updates)
    disc_updates = length(schedule.discriminator_updates, reached.disc_updates)
    return (
        scheduler(opt.lr_scheduler, optimizer_vae, vae_updates),
        scheduler(opt.disc_lr_scheduler, optimizer_disc, disc_updates),
    )
