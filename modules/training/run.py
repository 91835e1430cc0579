"""What a run consists of while it trains, and what one optimizer step does to it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from modules.config.arguments import Arguments
from modules.data.images.images import normalize
from modules.data.images.samples import Rejection
from modules.data.streaming.reader import StreamPosition
from modules.models.at_once import at_once
from modules.models.autoencoder import TrainableVAE
from modules.models.discriminator import Discriminator
from modules.models.lpips import LPIPS
from modules.models.modes import frozen
from modules.seeding import seed_for
from modules.training.adversary import Adversary
from modules.training.ema import ExponentialMovingAverage
from modules.training.equivariance import Change, drawn_change
from modules.training.guard import FiniteGuard, require_finite
from modules.training.losses import adaptive_d_weight, generator_loss, gradient_share
from modules.training.meter import Meter
from modules.training.schedule import GanSchedule
from modules.training.update import (
    adapt_loss_scale,
    clip_gradients,
    loss_scale,
    step_unless,
    unscale,
)


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
    adversary: Adversary
    loader: Iterable[dict[str, Any]] | None = None  # made once the position in the data is known
    step: int = 0
    samples: int = 0  # training images that all processes have used: the position in the data
    stream: StreamPosition = field(default_factory=StreamPosition)
    best: dict[str, float] = field(default_factory=dict)  # step and metrics of best/
    validation_due: bool = True  # at step 0, and at others until it is complete
    stale: int = 0  # validations in a row that found nothing better than `best`
    history: list[dict[str, Any]] = field(default_factory=list)  # resumed with which other flags
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
    def raw_discriminator(self) -> Discriminator:
        """The discriminator without DDP, for judging: frozen, it has nothing to synchronise."""
        return self.accelerator.unwrap_model(self.discriminator)

    @property
    def eyes(self) -> LPIPS | None:
        """LPIPS, of the loss or of the discriminator, which share it."""
        return self.perceptual or self.raw_discriminator.perceptual

    @property
    def out_of_patience(self) -> bool:
        """Whether --early_stopping ends the run here."""
        return 0 < self.args.validation.early_stopping <= self.stale

    @property
    def finished(self) -> bool:
        """Whether the last step has been taken: the planned one, or where patience ended."""
        return self.step >= self.max_train_steps or self.out_of_patience

    @property
    def measured_since(self) -> int:
        """The step from which on validation measures what it measures now."""
        return max(
            (change["step"] for change in self.history if change["measured_anew"]), default=0
        )

    def to_device(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The batch's images [B, K, H, W] in [-1, 1] and noise [B, C, h, w], on the device."""
        device = self.accelerator.device
        self.rejected += batch["rejected"]
        self.stream.advance(batch)
        self.meter.images += len(batch["images"])
        self.samples += self.args.optimization.train_batch_size * self.accelerator.num_processes
        images = normalize(batch["images"].to(device, non_blocking=True))
        upscaled = batch["upscaled"].to(device, non_blocking=True)
        self.meter.add(upscaled=upscaled / len(images))
        images = images.contiguous(memory_format=self.layout)
        return images, batch["noise"].to(device, non_blocking=True)

    def change(self, images: Tensor, noise: Tensor) -> Change:
        """What the latents and images of this micro-batch go through, in every process the same.

        It belongs to (seed, position in the data), so that a resumed run draws the same.
        """
        probability = self.args.losses.eq_prob
        if probability == 0:
            return Change()
        draw = Random(seed_for(self.args.optimization.seed, "change", self.samples))
        smallest = -(-self.args.smallest_side // (images.shape[-1] // noise.shape[-1]))
        return drawn_change(draw, probability, tuple(noise.shape[2:]), smallest)

    def record(self, **terms: Tensor) -> None:
        """Hands the scalars of a micro-batch to the log and to the guard against NaN."""
        self.meter.add(**terms)
        self.guard.watch(**terms)

    def judge(self, reconstructions: Tensor) -> Tensor:
        """The generator's loss: what the discriminator, frozen meanwhile, says of [B, K, H, W]."""
        with frozen(self.raw_discriminator):
            return at_once(
                lambda fakes: generator_loss(self.raw_discriminator(fakes)),
                reconstructions,
                loss_scale(self.accelerator),
            )

    def adversarial_weight(
        self, nll: Tensor, g_loss: Tensor, elements: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The factor on `g_loss` at this step, and what to log of it: scalars on the device.

        The adaptive weight balances two losses at the decoder's last layer. Only conv_out is run
        backward for its two weight gradients; they are averaged over processes first, so that all
        weigh alike, and as one process would. It is latent-diffusion's, made for losses that are
        summed over the `elements` of an image; ours are means.
        """
        disc, scale = self.args.discriminator, loss_scale(self.accelerator)
        felt = self.adversary.felt()
        share = self.schedule.adversarial_share(self.step) * disc.disc_factor * disc.disc_scale
        if not disc.disc_adaptive_weight:
            return share * felt, {"gan_felt": felt}
        gradients = torch.stack([
            torch.autograd.grad(scale * loss, self.raw_vae.last_layer, retain_graph=True)[0]
            for loss in (nll, g_loss)
        ])  # fmt: skip
        nll_gradient, g_gradient = self.accelerator.reduce(gradients, "mean") / scale
        d_weight = adaptive_d_weight(nll_gradient, g_gradient, elements, disc.disc_weight_max)
        weight = share / elements * felt * d_weight
        return weight, {
            "gan_felt": felt,
            "gan_share": gradient_share(nll_gradient, weight * g_gradient),
            "d_weight": d_weight,
            "d_weight_clamped": (d_weight >= disc.disc_weight_max).float(),
        }

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
        skip, seen = self.guard.verdict(self.adversary.seen)
        self.adversary.learn(seen, skip)
        for _, optimizer, scheduler in turns:
            step_unless(skip, optimizer)
            scheduler.step()
            optimizer.zero_grad(set_to_none=args.precision.set_grads_to_none)
        adapt_loss_scale(self.accelerator)
        if self.ema is not None and vae_turn:
            self.ema.update(skip)
        self.step += 1

    def judge_validation(self, metrics: dict[str, float], better: bool) -> None:
        """Remembers what a validation of this step found. better: than the best so far."""
        self.stale = 0 if better else self.stale + 1
        if better:
            self.require_finite_weights()
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            self.best = {"step": self.step, **finite}

    def averaged_weights(self) -> AbstractContextManager[None]:
        """A context in which the VAE has the weights to export: the EMA's, if there is one."""
        return nullcontext() if self.ema is None else self.ema.applied()

    def require_finite_weights(self) -> None:
        """Raises RunStopped, in every process, before weights are written that are not finite."""
        state = {"vae": self.raw_vae, "discriminator": self.raw_discriminator, "average": self.ema}
        require_finite(
            {
                f"{owner}.{name}": tensor
                for owner, holder in state.items()
                if holder is not None
                for name, tensor in holder.state_dict().items()
            },
            self.step,
        )

    def learning_rates(self) -> dict[str, float]:
        """The present learning rate of each network that is ever trained."""
        rates = {"lr": self.scheduler_vae.get_last_lr()[0]}
        if self.args.discriminator.enabled:
            rates["disc_lr"] = self.scheduler_disc.get_last_lr()[0]
        return rates
