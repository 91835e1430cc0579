"""The training step as papers and most trainers write it, to compare with.

Latent-diffusion's objective (Rombach et al. 2022): summed losses, the adaptive weight from two
gradients that are each taken back through LPIPS or the discriminator, then one backward of the
whole, which takes both again. Everything eager, in the default memory layout, with PyTorch's
default AdamW and diffusers' own blocks; the whole step under autocast, as Lightning runs it.
Gradients are the trainer's times N = K H W.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from eval.memory.fake_run import DTYPES
from modules.data.images.images import normalize
from modules.image_modes import over_views
from modules.training.losses import PIXEL_LOSSES, discriminator_loss
from modules.training.run import Run

EPSILON = 1e-4


class TextbookTrainer:
    """Trains copies of a run's networks, by the same flags.

    repeat_forward: run the VAE forward anew for the discriminator's turn, as latent-diffusion's
    Lightning module does.
    """

    def __init__(self, run: Run, repeat_forward: bool = False) -> None:
        self.args, self.device = run.args, run.accelerator.device
        self.repeat_forward = repeat_forward
        raw = run.raw_vae.vae
        with self.device:
            self.vae = AutoencoderKL.from_config(raw.config).train()
        self.vae.load_state_dict(raw.state_dict())
        for ours, theirs in zip(self.vae.parameters(), raw.parameters(), strict=True):
            ours.requires_grad_(theirs.requires_grad)
        copies = {}  # a network that both look through is copied once
        self.discriminator = deepcopy(run.raw_discriminator, copies)
        self.discriminator.to(memory_format=torch.contiguous_format)
        self.discriminator.__dict__.pop("forward", None)  # accelerate's autocast; ours is below
        self.perceptual = None  # a copy is not compiled, whatever the original is
        if run.perceptual is not None:
            self.perceptual = deepcopy(run.perceptual.network, copies)
        self.averages = [p.detach().clone() for p in self._trained()] if run.ema else []
        opt, (rate, disc_rate) = self.args.optimization, self.args.peak_rates
        options = {"betas": (opt.adam_beta1, opt.adam_beta2), "eps": opt.adam_epsilon,
                   "weight_decay": opt.adam_weight_decay}  # fmt: skip
        self.optimizer_vae = torch.optim.AdamW(self._trained(), lr=rate, **options)
        self.optimizer_disc = torch.optim.AdamW(
            self.discriminator.parameters(), lr=disc_rate, **options
        )

    def step(self, batches: Sequence[dict[str, Any]]) -> None:
        """One optimizer step over the micro-batches."""
        for batch in batches:
            self.backward(batch, share=1 / len(batches))
        self.optimizer_vae.step()
        self.optimizer_vae.zero_grad()
        self.optimizer_disc.step()
        self.optimizer_disc.zero_grad()
        decay = self.args.optimization.ema_decay
        for average, parameter in zip(self.averages, self._trained(), strict=bool(self.averages)):
            average.sub_((1 - decay) * (average - parameter.detach()))

    def backward(self, batch: dict[str, Any], share: float = 1.0) -> None:
        """Gradients of both networks for one micro-batch, times `share`."""
        images = normalize(batch["images"].to(self.device))
        noise = batch["noise"].to(self.device)
        dtype = DTYPES[self.args.precision.mixed_precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            reconstructions, posterior = self._forward(images, noise)
            loss = self._generator_loss(images, reconstructions, posterior)
        (share * loss).backward()
        if not self.args.discriminator.enabled:
            return
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            if self.repeat_forward:
                reconstructions, _ = self._forward(images, noise)
            logits_real = self.discriminator(images)
            logits_fake = self.discriminator(reconstructions.detach())
            d_loss = discriminator_loss(self.args.discriminator.disc_loss, logits_real, logits_fake)
        (share * d_loss).backward()

    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for p in self.vae.parameters() if p.requires_grad]

    def _forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Any]:
        posterior = self.vae.encode(images).latent_dist
        return self.vae.decode(posterior.mean + posterior.std * noise).sample, posterior

    def _generator_loss(self, images: Tensor, reconstructions: Tensor, posterior: Any) -> Tensor:
        losses, disc = self.args.losses, self.args.discriminator
        pixels = PIXEL_LOSSES[losses.rec_loss]
        nll = pixels(reconstructions, images, reduction="none")
        if self.perceptual is not None:
            p_loss = over_views(self.perceptual, images, reconstructions)
            nll = nll + losses.perceptual_scale * p_loss
        nll = nll.sum() / len(images)
        loss = nll + losses.kl_scale * posterior.kl().sum() / len(images)
        if not disc.enabled:
            return loss
        self.discriminator.requires_grad_(False).eval()
        g_loss = -self.discriminator(reconstructions).mean()
        self.discriminator.requires_grad_(True).train()
        last = self.vae.decoder.conv_out.weight
        (nll_gradient,) = torch.autograd.grad(nll, last, retain_graph=True)
        (g_gradient,) = torch.autograd.grad(g_loss, last, retain_graph=True)
        d_weight = nll_gradient.norm() / (g_gradient.norm() + EPSILON)
        d_weight = d_weight.clamp(0.0, disc.disc_weight_max).detach()
        return loss + disc.disc_factor * disc.disc_scale * d_weight * g_loss
