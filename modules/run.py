"""What a run consists of while it trains, and what one optimizer step does to it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from modules.arguments import Arguments
from modules.autoencoder import TrainableVAE
from modules.ema import ExponentialMovingAverage
from modules.gan_guard import GanGuard
from modules.guard import FiniteGuard
from modules.images import normalize
from modules.losses import adaptive_d_weight
from modules.meter import Meter
from modules.perceptual import LPIPS
from modules.samples import Rejection
from modules.schedule import GanSchedule
from modules.streaming import StreamPosition
from modules.update import adapt_loss_scale, clip_gradients, step_unless, unscale


@dataclass
class Run:
    """Built by `main`. `step` counts completed optimizer steps and is the only clock."""

    args: Arguments
    accelerator: Accelerator
    vae: nn.Module  # the prepared TrainableVAE: every training forward goes through it
    discriminator: nn.Module
    optimizer_vae: Any
    optimizer_disc: Any
    scheduler_vae: Any
    scheduler_disc: Any
    perceptual: LPIPS | None
    ema: ExponentialMovingAverage | None
    schedule: GanSchedule
    max_train_steps: int
    layout: torch.memory_format  # of images and weights
    meter: Meter
    guard: FiniteGuard
    gan_guard: GanGuard
    loader: Iterable[dict[str, Any]] | None = None  # made once the position in the data is known
    step: int = 0
    samples: int = 0  # training images that all processes have used: the position in the data
    stream: StreamPosition = field(default_factory=StreamPosition)
    best: dict[str, float] = field(default_factory=dict)  # step and metrics of best/
    validation_due: bool = True  # at step 0, and at others until it is complete
    rejected: list[Rejection] = field(default_factory=list)  # images since the last log point

    @property
    def output_dir(self) -> Path:
        """Where everything is written."""
        return Path(self.args.checkpoints.output_dir)

    @property
    def raw_vae(self) -> TrainableVAE:
        """The TrainableVAE without wrappers; `raw_vae.vae` is validated, saved and exported."""
        return self.accelerator.unwrap_model(self.vae)

    @property
    def raw_discriminator(self) -> nn.Module:
        """The discriminator without DDP, for judging: frozen, it has nothing to synchronise."""
        return self.accelerator.unwrap_model(self.discriminator)

    def to_device(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The batch's images [B, 3, H, W] in [-1, 1] and noise [B, C, h, w], on the device."""
        device = self.accelerator.device
        self.rejected += batch["rejected"]
        self.stream.advance(batch)
        self.meter.count_images(len(batch["images"]))
        images = normalize(batch["images"].to(device, non_blocking=True))
        upscaled = batch["upscaled"].to(device, non_blocking=True)
        self.meter.add(upscaled=upscaled / len(images))
        images = images.contiguous(memory_format=self.layout)
        return images, batch["noise"].to(device, non_blocking=True)

    def record(self, **terms: Tensor) -> None:
        """Hands the scalars of a micro-batch to the log and to the guard against NaN."""
        self.meter.add(**terms)
        self.guard.watch(**terms)

    def adversarial_share(self) -> float:
        """How much of the adversarial term the VAE feels at this step, from 0 to 1."""
        return self.schedule.adversarial_share(self.step) * self.gan_guard.share

    def adversarial_weight(
        self, reconstructions: Tensor, gradient: Tensor, g_gradient: Tensor, scale: Tensor
    ) -> Tensor | float:
        """What multiplies the generator's loss, beside `adversarial_share`.

        gradient, g_gradient: [B, 3, H, W], `scale` times the derivatives of nll and g_loss at the
        reconstructions. Only conv_out is run backward for its two weight gradients; they are
        averaged over processes first, so that all weigh alike, and as one process would.
        """
        disc = self.args.discriminator
        static = disc.disc_factor * disc.disc_scale
        if not disc.disc_adaptive_weight:
            return static
        at_last_layer = torch.stack([
            torch.autograd.grad(
                reconstructions, self.raw_vae.last_layer, upstream, retain_graph=True
            )[0]
            for upstream in (gradient, g_gradient)
        ])  # fmt: skip
        averaged = self.accelerator.reduce(at_last_layer, "mean") / scale
        elements = reconstructions[0].numel()
        d_weight = adaptive_d_weight(*averaged, elements, disc.disc_weight_max)
        self.record(d_weight=d_weight)
        return static * d_weight / elements

    def update(self, vae_turn: bool, disc_turn: bool) -> None:
        """One optimizer step: clip the gradients, then update the VAE, then the discriminator.

        Where any number was not finite, on any process, neither of them moves and nor does the EMA.
        """
        args, turns = self.args, []
        if vae_turn:
            turns.append(("grad_norm_vae", self.optimizer_vae, self.scheduler_vae))
        if disc_turn:
            turns.append(("grad_norm_disc", self.optimizer_disc, self.scheduler_disc))

        unscale(self.accelerator, [optimizer for _, optimizer, _ in turns])
        for name, optimizer, _ in turns:
            self.record(**{name: clip_gradients(optimizer, args.optimization.max_grad_norm)})
        skip = self.guard.verdict()
        for _, optimizer, scheduler in turns:
            step_unless(skip, optimizer)
            scheduler.step()
            optimizer.zero_grad(set_to_none=args.precision.set_grads_to_none)
        adapt_loss_scale(self.accelerator)
        if self.ema is not None and vae_turn:
            self.ema.update(skip)

        self.step += 1
        self.samples += args.optimization.images_per_step(self.accelerator.num_processes)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """A context in which the VAE has the weights to export: the EMA's, if there is one."""
        return nullcontext() if self.ema is None else self.ema.applied()

    def learning_rates(self) -> dict[str, float]:
        """The present learning rate of each network."""
        return {
            "lr": self.scheduler_vae.get_last_lr()[0],
            "disc_lr": self.scheduler_disc.get_last_lr()[0],
        }
